"""Composing the options of our commands leaves Hydra as fairseq needs it."""

from argparse import Namespace

import pytest
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.global_hydra import GlobalHydra

from slt_plugin.cli.overrides import compose, parse
from slt_plugin.models.errors import OptionError


def test_fairseq_still_reads_the_options_of_old_checkpoints():
    cfg = compose("evaluate", ["checkpoint=x.pt", "data=d", "results=r", "generation.beam=3"])
    assert cfg.generation.beam == 3
    assert not GlobalHydra.instance().is_initialized()
    assert convert_namespace_to_omegaconf(Namespace(seed=7)).common.seed == 7


@pytest.mark.parametrize(("sweep", "advised"), [(False, True), (None, False)])
def test_several_runs_are_advised_only_where_there_are_any(sweep, advised):
    with pytest.raises(OptionError, match=r"quote it twice: 'common.seed=\"1,2\"'") as caught:
        parse(["common.seed=1,2"], sweep=sweep)
    assert ("add -m" in str(caught.value)) == advised
