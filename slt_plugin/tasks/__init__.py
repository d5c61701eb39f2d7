"""Registers everything with fairseq: tasks, models, criterions and the checkpoint hooks.

fairseq imports this package through ``--user-dir``; Python code and the ``slt-*`` commands do ``import
slt_plugin.tasks``, because fairseq registers nothing when ``slt_plugin`` is already imported.
"""

import slt_plugin.criterions.mae_contrastive
import slt_plugin.criterions.sonar_distillation
import slt_plugin.models.parameter_groups
import slt_plugin.models.schedule
import slt_plugin.models.sign_clip
import slt_plugin.models.sign_mae
import slt_plugin.models.sign_to_text
import slt_plugin.models.sign_to_text_hf
import slt_plugin.models.sonar
import slt_plugin.tasks.sign_pretraining
import slt_plugin.tasks.sign_to_text  # noqa: F401
from slt_plugin.checkpoints import half_precision, mapped, safe
from slt_plugin.tasks import preemption

half_precision.install()
mapped.install()
safe.install()
preemption.install()
