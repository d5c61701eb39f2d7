"""Translation models of SSVP-SLT (Rust et al., 2024): T5 or BART of Hugging Face behind a projection of the features.

facebookresearch/ssvp_slt writes them as ``best_model.pth`` and ``checkpoint_*.pth``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.foreign import read_content
from slt_plugin.checkpoints.keymaps import SSVP_BART, SSVP_T5, KeyTable, convert
from slt_plugin.checkpoints.recognise import looks_like

CONTAINERS = ("model", "model_state")
PROJECTION = "projection."
DECODER_TOKENS, SHARED_TOKENS = "decoder.embed_tokens.weight", "shared.weight"


class SsvpTranslation(NamedTuple):
    """Tensors in fp32.

    table: names the layout.
    family: Hugging Face's model type, "t5" or "bart".
    state: under Hugging Face's names; without the encoder's token table, which features replace.
    weight, bias: of the projection, (D, F) and (D); T5's scale of each output channel is multiplied in.
    """

    table: KeyTable
    family: str
    state: dict[str, Tensor]
    weight: Tensor
    bias: Tensor

    @property
    def feature_dim(self) -> int:
        """Channels of the features."""
        return self.weight.shape[1]


def read_ssvp_translation(path: str | Path) -> SsvpTranslation:
    """The tensors of a ``best_model.pth``, memory-mapped.

    Raises:
        CheckpointError: the file is missing, damaged, or holds another kind of model.
    """
    content = read_content(path)
    theirs = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    kinds = {"t5": (SSVP_T5, "encoder.block.0."), "bart": (SSVP_BART, "model.encoder.layers.0.")}
    family = next((name for name, (_, layer) in kinds.items() if any(key.startswith(layer) for key in theirs)), None)
    if family is None or not any("feature_proj" in key for key in theirs) or "projection_out.weight" in theirs:
        raise CheckpointError(f"{path} is no translation model of SSVP-SLT; {looks_like(content)}")
    table = kinds[family][0]
    try:
        state = convert(theirs, table)
        weight, bias = (_taken(state, PROJECTION + name) for name in ("weight", "bias"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    scale = state.pop(PROJECTION + "scale", None)
    if scale is not None:  # scale * (W x + b) = (scale W) x + scale b
        weight, bias = scale.float().unsqueeze(1) * weight, scale.float() * bias
    prefix = "model." if family == "bart" else ""
    if prefix + DECODER_TOKENS in state:  # of the two tables the decoder reads its own
        state[prefix + SHARED_TOKENS] = state[prefix + DECODER_TOKENS]
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return SsvpTranslation(table, family, state, weight, bias)


def _taken(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"the {name.removeprefix(PROJECTION)} of the feature projection is missing")
    return state.pop(name).float()
