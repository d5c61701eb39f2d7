"""Reading a Hugging Face seq2seq model, from its directory or from the configuration that a checkpoint holds.

Pitfalls of transformers 5 that are dealt with here: it ties the token tables of T5 and its relatives whatever their
configuration says, although the output table of T5 v1.1, mT5 and ByT5 is another one; it loads a model in the precision
of its file; it gives random values to what a file lacks, with a warning; it makes constants trainable.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.common.messages import listing
from slt_plugin.models.errors import OptionError
from slt_plugin.models.hf_families import check_model, family_of

logger = logging.getLogger(__name__)

TIED, SCALED = "tie_word_embeddings", "scale_decoder_outputs"  # of a configuration


def load_model(folder: Path, *, dropout: float | None = None) -> nn.Module:
    """The model of a directory with config.json and weights, in fp32 and with its token tables as in the file.

    Args:
        dropout: None: as its configuration says.

    Raises:
        OptionError: the directory holds no model, or one that cannot be used.
        CheckpointError: the weights do not load, or the file lacks some.
    """
    auto_config, auto_model = _transformers()
    try:
        config = auto_config.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, and those of its parsers
        raise OptionError(
            f"model.hf_model={folder}: no configuration that transformers knows ({_one_line(error)}): give a "
            "directory with config.json and weights, as save_pretrained or 'hf download' writes it"
        ) from error
    _set_dropout(config, dropout)
    # with this, what the file has decides: one table is tied, two with different values are not
    config.tie_word_embeddings = True
    try:
        with _quietly():
            hf, info = auto_model.from_pretrained(
                folder,
                config=config,
                dtype="float32",
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, by name
            )
    except Exception as error:
        raise CheckpointError(f"model.hf_model={folder}: the weights do not load: {_one_line(error)}") from error
    # the hub's files of Pegasus and Marian do not hold their sinusoids: from_pretrained has computed them
    missing = sorted(set(info["missing_keys"]) - {f"{name}.weight" for name, _ in _sinusoids(hf)})
    mismatched = sorted(info["mismatched_keys"])
    if missing or mismatched:
        shapes = [f"{name} {tuple(file)} for {tuple(wanted)}" for name, file, wanted in mismatched]
        raise CheckpointError(
            f"model.hf_model={folder}: {len(missing) + len(shapes)} weights that {type(hf).__name__} needs are not in "
            f"the file, or of another shape, and would stay random: {listing([*missing, *shapes], 5)}. Download it "
            "again, or give the model that config.json describes"
        )
    return _prepared(hf)


def build_model(description: str, *, dropout: float | None = None) -> nn.Module:
    """The model that ``describe`` described, without its values: a checkpoint is about to be loaded.

    Raises:
        OptionError: a description that is none, or of a model that this transformers does not know.
    """
    auto_config, auto_model = _transformers()
    from transformers.initialization import no_init_weights

    try:
        values = json.loads(description)
        tied = values[TIED]
        config = auto_config.for_model(**values)
    except Exception as error:
        raise OptionError(
            f"model.hf_config of the checkpoint cannot be used by this transformers: {_one_line(error)}"
        ) from error
    family_of(config)
    if SCALED in values:  # T5: derived from how the tables were tied, unless it is set
        config.scale_decoder_outputs = values[SCALED]
    _set_dropout(config, dropout)
    config.tie_word_embeddings = True
    with no_init_weights():
        hf = auto_model.from_config(config, dtype="float32")
    hf.tie_weights()  # otherwise done with the initialisation
    if not tied:
        output = hf.get_output_embeddings()
        output.weight = nn.Parameter(output.weight.detach().clone())
    return _prepared(hf)


def describe(hf: nn.Module) -> str:
    """JSON of what ``build_model`` needs: the configuration, with the token tables as they are tied."""
    values = hf.config.to_dict()
    kept = {key: value for key, value in values.items() if _plain(value) and not key.startswith("_")}
    kept.pop("transformers_version", None)
    return json.dumps(kept, sort_keys=True)


def _prepared(hf: nn.Module) -> nn.Module:
    check_model(hf)
    _share_tables(hf)
    for _, table in _sinusoids(hf):
        # they get no gradient; among fairseq's flattened weights (fp16, bf16) weight decay would change them
        table.requires_grad_(False)
    return hf


def _sinusoids(hf: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and embeddings of positions that are a formula's (``create_weight``): those of Pegasus and Marian."""
    return [(name, module) for name, module in hf.named_modules() if hasattr(module, "create_weight")]


def _share_tables(hf: nn.Module) -> None:
    """One token table for what reads tokens, and the configuration as it is: tied to the output or not."""
    table, output = hf.get_decoder().get_input_embeddings(), hf.get_output_embeddings()
    hf.set_input_embeddings(table)  # the encoder's own is not used: it is fed with embeddings
    hf.config.tie_word_embeddings = output.weight is table.weight


def _set_dropout(config, dropout: float | None) -> None:
    family = family_of(config)
    if dropout is None:
        return
    if not 0 <= dropout < 1:
        raise OptionError(f"model.dropout={dropout}: expected a number from 0 up to, not including, 1")
    if not family.dropout:
        raise OptionError(
            f"model.dropout={dropout}: the configuration of {config.model_type} has no dropout: leave it null"
        )
    setattr(config, family.dropout, dropout)


def _transformers() -> tuple[type, type]:
    try:
        from transformers import AutoConfig, AutoModelForSeq2SeqLM
    except ImportError as error:
        raise OptionError(
            f"model sign_to_text_hf needs transformers ({error}): pip install 'slt-plugin[hf]'"
        ) from error
    return AutoConfig, AutoModelForSeq2SeqLM


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bar and its advice about tied tables; errors stay."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _plain(value) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
