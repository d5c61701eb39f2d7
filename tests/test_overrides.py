"""Composing the options of our commands leaves Hydra as fairseq needs it."""

from argparse import Namespace

from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.global_hydra import GlobalHydra

from slt_plugin.cli.overrides import compose


def test_fairseq_still_reads_the_options_of_old_checkpoints():
    cfg = compose("evaluate", ["checkpoint=x.pt", "data=d", "results=r", "generation.beam=3"])
    assert cfg.generation.beam == 3
    assert not GlobalHydra.instance().is_initialized()
    assert convert_namespace_to_omegaconf(Namespace(seed=7)).common.seed == 7
