"""What the families of Hugging Face's seq2seq models differ in, as far as this project has to know it."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass

from slt_plugin.common.messages import listing
from slt_plugin.models.errors import OptionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """One ``model_type`` of transformers.

    dropout: the name of the configuration's dropout. overflows_in_fp16: its activations leave the range of fp16, known
    of T5 (https://github.com/huggingface/transformers/issues/10956) and of Pegasus (its documentation).
    limited_positions: its tables of positions end at ``max_position_embeddings``.
    """

    dropout: str = "dropout"
    overflows_in_fp16: bool = False
    limited_positions: bool = True


_T5 = Family(dropout="dropout_rate", overflows_in_fp16=True, limited_positions=False)
FAMILIES = {
    "t5": _T5,  # ByT5 too
    "mt5": _T5,
    "bart": Family(),
    "mbart": Family(),  # cc25 and 50
    "pegasus": Family(overflows_in_fp16=True),
    "m2m_100": Family(limited_positions=False),  # NLLB too; its sinusoids grow with the input
}
# relatives of the tested ones, whose activations are as large
_OVERFLOWING = ("umt5", "longt5", "switch_transformers", "bigbird_pegasus", "pegasus_x")


def family_of(config) -> Family:
    """The family of a configuration; an untested one is warned of.

    Raises:
        OptionError: no encoder-decoder that AutoModelForSeq2SeqLM builds.
    """
    model_type = config.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    _check_type(config)
    dropout = next((name for name in ("dropout", "dropout_rate") if hasattr(config, name)), "")
    logger.warning(
        "model_type %s is not among the tested ones (%s): compare the results of a small run with the model's own",
        *(model_type, ", ".join(FAMILIES)),
    )
    return Family(dropout, model_type in _OVERFLOWING, hasattr(config, "max_position_embeddings"))


def _check_type(config) -> None:
    from transformers import AutoModelForSeq2SeqLM

    if type(config) not in AutoModelForSeq2SeqLM._model_mapping or not config.is_encoder_decoder:
        raise OptionError(
            f"model_type {config.model_type} has no encoder and decoder of text (AutoModelForSeq2SeqLM does not know "
            f"it): set model.hf_model to one that has; tested are {', '.join(FAMILIES)}"
        )


def check_model(hf) -> None:
    """Raises OptionError where a model lacks what feeding and decoding it needs; the message says what is missing."""
    missing = []
    encoder = hf.get_encoder()
    takes = inspect.signature(encoder.forward).parameters
    missing += [
        f"its encoder does not take {name}" for name in ("inputs_embeds", "attention_mask") if name not in takes
    ]
    takes = inspect.signature(hf.forward).parameters
    for name in ("decoder_input_ids", "encoder_outputs", "past_key_values", "use_cache"):
        if name not in takes:
            missing.append(f"it does not take {name}")
    if not isinstance(getattr(hf.config, "hidden_size", None), int):
        missing.append("its configuration does not tell its width (hidden_size)")
    if hf.get_input_embeddings() is None or hf.get_output_embeddings() is None:
        missing.append("it has no table of tokens at its input, or none at its output")
    if missing:
        raise OptionError(
            f"{type(hf).__name__} (model_type {hf.config.model_type}) cannot be the decoder: {'; '.join(missing)}. "
            f"Tested are {listing(list(FAMILIES))}"
        )
