"""SignHiera weights from any known checkpoint, and our own file with their provenance.

Our file is a PyTorch file ``{"format": FORMAT, "variant": name, "model": state dict, "provenance": {...}}``; its state
dict has the names of ``modules.hiera.SignHiera`` and only tensors that the source file held. Where that was one of our
trainings, ``"clips"`` says how it cut its videos.
"""

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.foreign import read_content
from slt_plugin.checkpoints.keymaps import (
    HIERA_CLASSIFIER,
    HIERA_MAE,
    SIGN_HIERA,
    SIGN_MAE,
    SIGN_TO_TEXT,
    SSVP_CLIP,
    SSVP_MAE,
    KeyTable,
    convert,
    fit,
)
from slt_plugin.checkpoints.provenance import UNKNOWN, Provenance, provenance_of
from slt_plugin.checkpoints.recognise import Geometry, geometry, looks_like
from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.modules.hiera import VARIANTS, SignHiera, interpolate_temporal_positions

__all__ = ["FORMAT", "Provenance", "SignHieraFile", "describe", "import_sign_hiera", "load_sign_hiera", "read_file"]

logger = logging.getLogger(__name__)

FORMAT = "slt_plugin.sign_hiera"
# (key of the checkpoint's dict that holds the tensors, "" for the dict itself; a name that such a file has; its table).
# The first layout that fits is taken; another project is one line here and one table in keymaps.
LAYOUTS: tuple[tuple[str, str, KeyTable], ...] = (
    ("clip", r"visual\.transformer\..+", SSVP_CLIP),
    ("model", r"encoder\.source_encoder\.hiera\..+", SIGN_TO_TEXT),
    ("model", r"mae\.encoder\..+", SIGN_MAE),
    ("model", r"blocks\.0\..+", SSVP_MAE),
    ("model_state", r"head\.projection\..+", HIERA_CLASSIFIER),
    ("model_state", r"blocks\.0\..+", HIERA_MAE),
    ("", r"head\.projection\..+", HIERA_CLASSIFIER),
    ("", r"blocks\.0\..+", HIERA_MAE),
)
TEMPORAL, HEAD = "pos_embed_temporal", "head.projection.weight"
SAMPLING = ("clip_sampling_rate", "clip_target_fps")  # options of our tasks: every n-th frame at a rate


class SignHieraFile(NamedTuple):
    """A checkpoint, converted and compared with its variant.

    state: our names -> tensors, temporal positions already of the variant's length.
    kept: names that the file lacks (norm and head of an autoencoder); a model keeps its initial values for them.
    notes: what differs from the source file, or from what it was trained as.
    provenance: of our own files; None for a foreign one, see ``describe``.
    clips: how the training cut its videos (`SAMPLING`), where the file says so.
    """

    state: dict[str, Tensor]
    variant: str
    project: str
    kept: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: Provenance | None
    clips: Mapping[str, float]


def load_sign_hiera(path: str | Path, variant: str | None = None, *, drop_path_rate: float = 0.0) -> SignHiera:
    """A SignHiera with the weights of a checkpoint of any known layout.

    Args:
        variant: key of ``modules.hiera.VARIANTS``; None: as the file says, by its "variant" or its shapes. Temporal
            positions are interpolated to the variant's length.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or does not fit the variant. A SignHiera with
            initial weights is never returned.
    """
    file = read_file(path, variant)
    model = VARIANTS[file.variant](drop_path_rate=drop_path_rate, **_classes(file.state))
    model.load_state_dict(file.state, strict=False)  # `fit` has compared every name
    logger.info("loaded SignHiera %s: %d tensors of %s (%s)", file.variant, len(file.state), path, file.project)
    for note in file.notes:
        logger.warning("%s: %s", path, note)
    if file.provenance is not None:
        logger.info("%s: %s", path, "; ".join(file.provenance.lines()))
    if file.kept:
        logger.info("%s: not in the file, and not needed for features: %s", path, ", ".join(file.kept))
    return model


def read_file(path: str | Path, variant: str | None = None) -> SignHieraFile:
    """Reads, converts and checks a SignHiera checkpoint; arguments and errors as ``load_sign_hiera``."""
    if variant is not None:
        _check_variant(variant)
    content = read_content(path)
    try:
        return _read_content(content, variant)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def describe(path: str | Path) -> Provenance:
    """Where the weights of a SignHiera checkpoint come from: as stored in our own file, as found out for a foreign one.

    Raises:
        CheckpointError: as ``load_sign_hiera``.
    """
    file = read_file(path)
    return file.provenance or provenance_of(path, project=file.project, notes=file.notes)


def import_sign_hiera(
    path: str | Path,
    out: str | Path,
    variant: str | None = None,
    *,
    licence: str | None = None,
    source: str | None = None,
) -> SignHieraFile:
    """Writes our own file from a checkpoint of any known layout. The same input gives the same bytes.

    Args:
        licence, source: of the weights; None: from the file's provenance, see ``provenance_of``.

    Returns:
        What was written, with its provenance.

    Raises:
        CheckpointError: as ``load_sign_hiera``, or ``out`` exists.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists already: remove it or name another file")
    file = read_file(path, variant)
    if file.provenance is not None:  # imported before: its origin stays the origin
        first = file.provenance
        notes = (*first.notes, *file.notes)
        provenance = Provenance(source or first.source, first.sha256, licence or first.licence, notes, first.project)
    else:
        provenance = provenance_of(path, project=file.project, source=source, licence=licence, notes=file.notes)
    if provenance.licence == UNKNOWN:
        logger.warning("%s: the licence of these weights is not known; state it with --licence", path)
    state = {name: tensor.clone() for name, tensor in file.state.items()}  # not the storages they are views of
    content = {"format": FORMAT, "variant": file.variant, "model": state, "provenance": provenance.to_dict()}
    if file.clips:
        content["clips"] = dict(file.clips)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(out) as stream:
        torch.save(content, stream)
    return file._replace(provenance=provenance)


# Inside a file


def _read_content(content: Mapping, variant: str | None) -> SignHieraFile:
    provenance = None
    if content.get("format") == FORMAT:
        stored = content.get("variant")
        if not isinstance(stored, str):
            raise CheckpointError("it says format slt_plugin.sign_hiera but not its variant: import it again")
        _check_variant(stored)
        variant = variant or stored
        provenance = Provenance.from_dict(content.get("provenance"), "it")
        tensors, table = _tensors(content, "model"), SIGN_HIERA
    else:
        tensors, table = _foreign_tensors(content)
    try:
        state = convert(tensors, table)
        sizes = geometry(state)
        if sizes is None:
            raise CheckpointError(f"not a {table.name} checkpoint: it has no separable video position embeddings")
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {_capitalised(looks_like(content))}") from error
    variant = variant or _variant_of(sizes)
    with torch.device("meta"):  # names and shapes only
        reference = VARIANTS[variant](**_classes(state))
    notes = _adapt(state, sizes, variant) + _pooling_note(tensors, reference)
    state, kept = fit(state, reference.state_dict(), table)
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{listing(broken)} hold values that are not finite: the file is damaged or diverged")
    project = provenance.project if provenance is not None else table.name
    return SignHieraFile(state, variant, project, tuple(kept), tuple(notes), provenance, _clips(content))


def _clips(content: Mapping) -> dict[str, float]:
    """What our own files, pretrainings and fine-tunings on video say of `SAMPLING`; nothing of other files."""
    state = content.get("task_state")
    places = [content, *([state] if isinstance(state, Mapping) else [])]
    found = [place[name] for place in places for name in ("clips", "source") if isinstance(place.get(name), Mapping)]
    return {
        name: options[name]
        for options in found
        for name in SAMPLING
        if isinstance(options.get(name), int | float) and options[name] > 0
    }


def _foreign_tensors(content: Mapping) -> tuple[dict[str, Tensor], KeyTable]:
    for container, marker, table in LAYOUTS:
        inside = content.get(container) if container else content
        if isinstance(inside, Mapping) and any(re.fullmatch(marker, str(name)) for name in inside):
            return _tensors(content, container), table
    projects = dict.fromkeys(table.name for _, _, table in LAYOUTS)
    raise CheckpointError(
        f"no SignHiera: {looks_like(content)}. Expected a checkpoint of {', '.join(projects)}, or what "
        "slt-import-checkpoint sign-hiera wrote"
    )


def _tensors(content: Mapping, container: str) -> dict[str, Tensor]:
    state = content.get(container) if container else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        where = f"its {container!r}" if container else "its top level"
        raise CheckpointError(f"{where} is no dict of tensors. {_capitalised(looks_like(content))}")
    return dict(state)


def _adapt(state: dict[str, Tensor], sizes: Geometry, variant: str) -> list[str]:
    """Stretches the temporal positions in ``state`` to the variant's; returns notes on it.

    Raises:
        CheckpointError: the file has other sizes, which cannot be converted.
    """
    wanted = _variant_sizes(variant)
    if sizes == wanted:
        return []
    if sizes != replace(wanted, steps=sizes.steps):
        raise CheckpointError(f"the file has {sizes}; the variant {variant} has {wanted}")
    state[TEMPORAL] = interpolate_temporal_positions(state[TEMPORAL], wanted.steps)
    return [f"temporal positions interpolated linearly from {sizes.steps} to {wanted.steps} time steps"]


def _pooling_note(tensors: Mapping[str, Tensor], reference: SignHiera) -> list[str]:
    """An autoencoder has one fusion head a pooling: the public video MAE pools twice, the encoder used here thrice.

    The weights are the same tensors either way, but the last stage was trained on four times as many positions.
    """
    trained = len({m[1] for name in tensors if (m := re.search(r"multi_scale_fusion_heads\.(\d+)\.weight", name))})
    pooled = sum(block.q_stride > 1 for block in reference.blocks)
    if trained in (0, pooled):
        return []
    return [f"pretrained with q_pool {trained}, used with q_pool {pooled}: the last stage was trained without pooling"]


def _variant_of(sizes: Geometry) -> str:
    """The variant of exactly these sizes.

    Raises:
        CheckpointError: there is none; names those that differ in the number of time steps only.
    """
    similar = []
    for name in VARIANTS:
        known = _variant_sizes(name)
        if known == sizes:
            return name
        if replace(known, steps=sizes.steps) == sizes:
            similar.append(name)
    if similar:
        raise CheckpointError(
            f"no variant has {sizes}: name the variant to stretch its temporal positions to: {', '.join(similar)}"
        )
    raise CheckpointError(f"no variant has {sizes}; known variants: {', '.join(VARIANTS)}")


@functools.cache
def _variant_sizes(variant: str) -> Geometry:
    with torch.device("meta"):
        return geometry(VARIANTS[variant]().state_dict())


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise CheckpointError(
            f"unknown SignHiera variant {variant!r}{did_you_mean(variant, VARIANTS)}; known: {', '.join(VARIANTS)}"
        )


def _classes(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {"num_classes": len(state[HEAD])} if HEAD in state and state[HEAD].ndim else {}


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
