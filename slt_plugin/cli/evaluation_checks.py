"""What ``slt-evaluate`` checks before it loads a model: its options, manifests, results folder, checkpoints."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.checkpoints.keymaps import CheckpointError
from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.models.errors import OptionError
from slt_plugin.scoring.intervals import FEWEST_SAMPLES

MAY_BE_NULL = ("dataset.max_tokens",)  # where dataset.batch_size is given
LOG_FORMATS = (None, "json", "none", "simple", "tqdm")  # of fairseq's progress bar


def check_options(cfg) -> None:
    """Raises OptionError on values that no decoding can have."""
    generation = cfg.generation
    if generation.beam < 1:
        raise OptionError(f"generation.beam={generation.beam}: at least 1 is needed")
    if not 1 <= generation.nbest <= generation.beam:
        raise OptionError(
            f"generation.nbest={generation.nbest}: at least 1 and at most generation.beam={generation.beam} is needed"
        )
    for key in ("sampling_topk", "sampling_topp"):
        if generation[key] > 0 and not generation.sampling:
            raise OptionError(f"generation.{key}={generation[key]} has no effect: add generation.sampling=true")
    for key in ("confidence", "evidence"):
        if cfg[key] < 0:
            raise OptionError(f"{key}={cfg[key]}: 0 (none) or more is needed")
    if 0 < cfg.confidence < FEWEST_SAMPLES:
        raise OptionError(f"confidence={cfg.confidence}: 0 (no intervals) or at least {FEWEST_SAMPLES} is needed")
    for key in ("frames", "blur_faces"):
        needed = "evidence" if key == "frames" else "frames"
        if cfg[key] and not cfg[needed]:
            raise OptionError(f"{key}=true has no effect with {needed}={str(cfg[needed]).lower()}")
    for key in ("max_tokens", "batch_size"):
        value = cfg.dataset[key]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise OptionError(f"dataset.{key}={value}: a whole number above 0, or null, is needed")
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        raise OptionError("dataset.max_tokens and dataset.batch_size are both null: one must limit a batch")
    if cfg.dataset.num_workers < 0:
        raise OptionError(
            f"dataset.num_workers={cfg.dataset.num_workers}: 0 (load in the main process) or more is needed"
        )
    if cfg.common.log_format not in LOG_FORMATS:
        raise OptionError(
            f"common.log_format={cfg.common.log_format}{did_you_mean(cfg.common.log_format, LOG_FORMATS[1:])}: "
            f"{', '.join(LOG_FORMATS[1:])} or null is needed"
        )


def read_texts(directory: Path, subset: str) -> list[Row]:
    """All rows of ``<directory>/<subset>.tsv``.

    Raises:
        DataError: no such manifest, no rows, or rows without a text to score against.
    """
    path = directory / f"{subset}.tsv"
    if not path.is_file():
        found = sorted(p.stem for p in directory.glob("*.tsv"))
        raise DataError(
            f"{path} does not exist{did_you_mean(subset, found)}; manifests in data={directory}: "
            f"{listing(found) or 'none'}"
        )
    rows = read_manifest(path)
    lacking = [row.id for row in rows if not (row.text or "").strip()]
    if lacking:
        raise DataError(
            f"{path}: {len(lacking)} of {len(rows)} rows have no text to score against: {listing(lacking)}. Fill the "
            "column, or decode without scores (fairseq-generate)"
        )
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def prepare_results(folder: Path, subsets: Sequence[str]) -> None:
    """Makes ``<folder>/<subset>``. Raises OptionError where a file cannot be written there."""
    for subset in subsets:
        try:
            (folder / subset).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder / subset):
                pass
        except OSError as error:
            raise OptionError(
                f"results={folder}: {folder / subset} cannot be written ({error.strerror}); give another folder"
            ) from error


def check_checkpoints(joined: str) -> list[Path]:
    """The files of ``checkpoint=PATH[:PATH...]``.

    Raises:
        CheckpointError: a file is missing, damaged, or none that this plugin trained or imported.
    """
    from slt_plugin.checkpoints.safe import find_problem, read_task_state

    paths = [Path(path) for path in joined.split(":")]
    for path in paths:
        problem = find_problem(path)
        if problem is not None and "weights only" in problem.lower():
            # torch would advise to switch its protection off
            problem = "it is no torch file, or holds objects (beyond tensors and plain values) that could run code"
        if problem is not None:
            raise CheckpointError(f"checkpoint={path} cannot be loaded: {problem}")
        if not read_task_state(path):
            raise CheckpointError(
                f"checkpoint={path} is no slt_plugin checkpoint; import it with slt-import-checkpoint"
            )
    return paths
