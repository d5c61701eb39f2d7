"""Pictures of what a masked autoencoder makes of given rows, one PNG for each."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.foreign import read_content
from slt_plugin.checkpoints.recognise import looks_like
from slt_plugin.checkpoints.sign_mae import load_sign_mae
from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.data.clips import ClipOptions
from slt_plugin.data.draws import Draw, generator
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.data.pretraining import RandomClips
from slt_plugin.models.reconstruction import clip_pictures
from slt_plugin.models.sign_mae import SignMAEConfig
from slt_plugin.modules.hiera_mae import VARIANTS, SignHieraMAE
from slt_plugin.report.clip_picture import draw_clip, write_png
from slt_plugin.report.errors import ReportError

MODELS = ("sign_mae", "sign_clip")
NAME_CHARACTERS = 60  # of an id in a file's name, at most


class Pretrained(NamedTuple):
    """An autoencoder as a training left it, and what the training read.

    clips: how it cut videos.
    mask_ratio, seed: of its masks.
    """

    mae: SignHieraMAE
    clips: ClipOptions
    mask_ratio: float
    seed: int


def read_pretrained(path: str | Path) -> Pretrained:
    """The autoencoder of a checkpoint of ``sign_mae`` or ``sign_clip``, ready to use, on the CPU.

    Nothing else of the checkpoint is built: neither a text tower nor the task, whose files may not be here.

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind.
    """
    content = read_content(path)
    cfg = _section(content, "cfg")
    model, cut = _section(cfg, "model"), _section(_section(content, "task_state"), "clips")
    if model.get("_name") not in MODELS or not cut:
        raise CheckpointError(
            f"{path}: expected a checkpoint of slt-pretrain (model {' or '.join(MODELS)}); {looks_like(content)}"
        )
    if _section(cfg, "criterion").get("no_mae"):
        raise CheckpointError(f"{path} was trained with criterion.no_mae=true: it has no reconstruction to look at")
    # fairseq keeps what a command line or configuration file gave: the rest are defaults
    default = SignMAEConfig()
    variant, norm_pix_loss, mask_ratio = (
        model.get(name, getattr(default, name)) for name in ("variant", "norm_pix_loss", "mask_ratio")
    )
    if variant not in VARIANTS:
        raise CheckpointError(f"{path}: model.variant={variant} is not known here; variants: {', '.join(VARIANTS)}")
    mae = VARIANTS[variant](norm_pix_loss=norm_pix_loss)
    load_sign_mae(path, mae)
    clips = ClipOptions(
        num_frames=cut["clip_frames"],
        sampling_rate=cut["clip_sampling_rate"],
        target_fps=cut["clip_target_fps"],
        size=cut["clip_size"],
    )
    return Pretrained(mae.eval(), clips, mask_ratio, cfg["common"]["seed"])


def _section(content: Mapping, name: str) -> Mapping:
    section = content.get(name)
    return section if isinstance(section, Mapping) else {}


def choose_rows(manifest: Path, *, ids: Sequence[str] | None = None, first: int | None = None) -> list[tuple[int, Row]]:
    """Rows with their numbers in the manifest: those of ``ids``, in that order, or the first ones.

    Raises:
        ReportError: an id that the manifest does not have, or no rows.
        DataError: the manifest cannot be read.
    """
    rows = read_manifest(manifest)
    if ids is None:
        if first < 1 or not rows:
            raise ReportError(f"{manifest}: --first {first} of {len(rows)} rows: give at least 1")
        return list(enumerate(rows[:first]))
    numbers = {row.id: number for number, row in enumerate(rows)}
    unknown = [name for name in ids if name not in numbers]
    if unknown:
        raise ReportError(f"{manifest} has no row {listing(unknown)}{did_you_mean(unknown[0], numbers)}")
    return [(numbers[name], rows[numbers[name]]) for name in dict.fromkeys(ids)]


def write_reconstructions(
    pretrained: Pretrained,
    rows: Sequence[tuple[int, Row]],
    media_root: Path,
    out: Path,
    *,
    mask_ratio: float | None = None,
    steps: int = 8,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Path]:
    """Writes ``<out>/<row id>.png`` for each row, and gives each path when it is there.

    Clip and mask of a row are those of validation in a training with this seed, which draws both from the seed and the
    row's number among all rows of its manifest, or among those that task.min_duration and max_duration leave.

    Args:
        rows: with their numbers in the manifest.
        mask_ratio, seed: None: those of the training.
        steps: columns of a picture, at most.

    Raises:
        ReportError: options that no picture can have, or a file that cannot be written.
        DataError: a video that cannot be read, or is too short for a clip; the message names the row.
    """
    mask_ratio = pretrained.mask_ratio if mask_ratio is None else mask_ratio
    seed = pretrained.seed if seed is None else seed
    if not 0 < mask_ratio < 1:
        raise ReportError(f"--mask-ratio {mask_ratio:g}: give a share above 0 and below 1")
    if steps < 1 or seed < 0:
        raise ReportError(f"--steps {steps} --seed {seed}: give whole numbers, of at least 1 and 0")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"--out {out} is no folder, and none can be made: {error.strerror}") from error
    mae, clips = pretrained.mae.to(device), RandomClips(media_root, pretrained.clips)
    return (
        _write(mae, clips, number, row, out / file_name(row.id, number), mask_ratio, steps, seed)
        for number, row in rows
    )


def _write(
    mae: SignHieraMAE,
    clips: RandomClips,
    number: int,
    row: Row,
    path: Path,
    mask_ratio: float,
    steps: int,
    seed: int,
) -> Path:
    # as `PretrainingDataset` draws validation clips
    (clip,) = clips.load(row, [generator(Draw.VALIDATION_CLIP, seed, number)], augment=False)
    net_input = {
        "src_tokens": clip.frames.unsqueeze(0),
        "src_lengths": torch.tensor([len(clip.frames)]),
        "mask_seeds": torch.tensor([clip.mask_seed]),
    }
    (pictures,) = clip_pictures(mae, net_input, mask_ratio)
    _, fps = clips.length(row)
    frames = clip.indices[:: mae.encoder.temporal_stride].tolist()  # those that are drawn
    seconds = [(row.start or 0.0) + frame / fps for frame in frames]
    title = f"{row.id}   loss {pictures.loss:.4f}   {pictures.hidden:.0%} hidden   {len(seconds)} time steps"
    write_png(draw_clip(pictures.rows, seconds, title, steps), path)
    return path


def file_name(row_id: str, number: int) -> str:
    """The name of a row's picture: its id, where a file can have that; else what is left of it, and its number."""
    name = re.sub(r"[^\w.,=+-]", "_", row_id)[:NAME_CHARACTERS]
    if name != row_id or name.startswith("."):
        name = f"{name.lstrip('.')}~{number}"  # no id that is kept has this character
    return f"{name}.png"
