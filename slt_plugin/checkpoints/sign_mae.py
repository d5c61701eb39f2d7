"""A whole masked autoencoder, encoder and decoder, from a checkpoint: to go on with its pretraining on other videos."""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from slt_plugin.checkpoints.foreign import read_content
from slt_plugin.checkpoints.keymaps import CheckpointError, KeyTable, fit
from slt_plugin.checkpoints.recognise import looks_like
from slt_plugin.common.messages import listing
from slt_plugin.modules.hiera_mae import SignHieraMAE

logger = logging.getLogger(__name__)

# (key of the checkpoint's dict that holds the tensors, "" for the dict itself; what stands before the autoencoder's
# names): sign_clip and sign_mae of ours, SSVP-SLT's CLIP, SSVP-SLT's MAE, the public Hiera video MAE
LAYOUTS = (("model", "mae."), ("clip", "visual.transformer."), ("model", ""), ("model_state", ""), ("", ""))
MARK = "decoder_pred.weight"
TABLE = KeyTable(name="autoencoder", renames=())  # nothing may be missing, nothing left over


def load_sign_mae(path: str | Path, mae: SignHieraMAE) -> None:
    """Loads encoder and decoder, in place.

    Raises:
        CheckpointError: the file is missing, damaged, no autoencoder, or one of other sizes.
    """
    content = read_content(path)
    state = _autoencoder(content)
    if state is None:
        raise CheckpointError(
            f"{path}: no masked autoencoder with its decoder: {looks_like(content)}. An encoder alone is loaded with "
            "model.pretrained_decoder=false"
        )
    own = mae.state_dict()
    named = any(name.startswith("encoder.") for name in state)
    theirs = {name if named else _public(name): value for name, value in own.items()}
    try:
        fit(state, theirs, TABLE)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}. Choose its model.variant, or take its encoder alone (model.pretrained_decoder=false)"
        ) from error
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: {listing(broken)} hold values that are not finite: it is damaged or diverged")
    mae.load_state_dict(state)
    logger.info("loaded a SignHieraMAE, encoder and decoder: %d tensors of %s", len(state), path)


def _autoencoder(content: Mapping) -> dict[str, Tensor] | None:
    for container, prefix in LAYOUTS:
        inside = content.get(container) if container else content
        if isinstance(inside, Mapping) and prefix + MARK in inside:
            return {name.removeprefix(prefix): value for name, value in inside.items() if name.startswith(prefix)}
    return None


def _public(name: str) -> str:
    return name.removeprefix("encoder.")
