"""Checkpoints that survive a crash: hooks onto fairseq 0.12.3, put in place by ``install()``.

fairseq's task API (``get_checkpoint_dict`` / ``set_checkpoint_dict``) is too narrow for this: it is not called when the
data loader is reset, and it covers neither how files are written nor which file is read. So four functions are wrapped;
``tests/test_safe_checkpoints.py`` pins their source and fails when another fairseq is installed.
"""

import argparse
import copy
import functools
import logging
import os
import pickle
import re
import shutil
import socket
import struct
import sys
import time
import typing
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import omegaconf
import torch
from fairseq import checkpoint_utils, trainer
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager

from slt_plugin.checkpoints.keymaps import CheckpointError
from slt_plugin.common.errors import SltError
from slt_plugin.common.files import atomic_open, process_runs, sync_folder, temporary_path

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pt"  # fairseq's default of checkpoint.restore_file
EARLY_STOPPING = "early_stopping"  # key in a checkpoint's extra_state: {"best": float, "num_runs": int}
CHECKPOINT_NAME = r"checkpoint(?:\d+|_\d+_\d+|_best|_last|\.best_.+)"
TEMPORARY_NAME = re.compile(r"\..+\.slt-(?P<host>.+)-(?P<pid>\d+)\.tmp")
ABANDONED_SECONDS = 600  # a temporary file of another machine is abandoned when it has not grown for so long
SAVE_ATTEMPTS = 3  # as fairseq does: shared file systems fail for moments
SAVE_PAUSE_SECONDS = 2.5

# what torch.load raises on files that are truncated, damaged or of another kind
LOAD_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)

_fairseq_save = checkpoint_utils.torch_persistent_save
_fairseq_load_checkpoint = checkpoint_utils.load_checkpoint
_fairseq_copy = PathManager.copy
_fairseq_trainer_save = trainer.Trainer.save_checkpoint


def install() -> None:
    """Puts the hooks in place; calling it again changes nothing."""
    allow_fairseq_classes()
    checkpoint_utils.torch_persistent_save = save_atomically
    checkpoint_utils.load_checkpoint = load_checkpoint
    PathManager.copy = staticmethod(copy_atomically)
    trainer.Trainer.save_checkpoint = save_with_early_stopping


def allow_fairseq_classes() -> None:
    """Lets ``torch.load(weights_only=True)`` read what fairseq itself writes.

    Old checkpoints hold an argparse.Namespace or an omegaconf configuration; a resume on several ranks sends the
    configuration and ``_TensorPlaceholder`` through a bare ``torch.load``. None of these runs code when it is built.
    """
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            omegaconf.DictConfig,
            omegaconf.ListConfig,
            omegaconf.base.ContainerMetadata,
            omegaconf.base.Metadata,
            omegaconf.nodes.AnyNode,
            typing.Any,
            dict,
            list,
            int,
            defaultdict,
            distributed_utils._TensorPlaceholder,
        ]
    )


# Writing: a reader sees the old file or the whole new one, also after kill -9 and after a power cut


@functools.wraps(_fairseq_save)
def save_atomically(obj, filename, async_write=False):
    """Replaces fairseq's save, which retries a failed write at the position where the first one stopped.

    Raises:
        CheckpointError: the file cannot be written; one of that name is as it was.
    """
    if async_write or not PathManager.supports_rename(filename):
        return _fairseq_save(obj, filename, async_write)
    for attempt in range(1, SAVE_ATTEMPTS + 1):
        try:
            with atomic_open(Path(filename)) as file:
                torch.save(obj, file)
            return None
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            if attempt == SAVE_ATTEMPTS:
                raise _unwritten(filename, error) from error
            logger.warning("cannot write %s (%s); trying again", filename, _reason(error))
            time.sleep(SAVE_PAUSE_SECONDS)


@functools.wraps(_fairseq_copy)
def copy_atomically(src_path, dst_path, overwrite=False):
    """Replaces the copy to best, last and epoch files, during which a kill left half a file under the final name.

    A hard link costs no time and no space; the two names cannot disturb each other, because every save makes a new
    file.
    """
    if not overwrite or any(PathManager.path_requires_pathmanager(p) for p in (src_path, dst_path)):
        return _fairseq_copy(src_path, dst_path, overwrite=overwrite)
    target = Path(dst_path)
    temporary = temporary_path(target)
    temporary.unlink(missing_ok=True)  # of a dead process that had our number: link() does not overwrite
    try:
        os.link(src_path, temporary)
    except OSError:  # a file system without hard links
        try:
            with open(src_path, "rb") as source, atomic_open(target) as file:
                shutil.copyfileobj(source, file, length=2**24)
        except OSError as error:
            raise _unwritten(dst_path, error) from error
        return True
    try:
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)  # rename() between two names of one file keeps both
    return True


def _unwritten(path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be written: {_reason(error)}. The checkpoints before it are whole; make room (or use another "
        "checkpoint.save_dir with checkpoint.restore_file), then the same command goes on from the last one"
    )


def _reason(error: BaseException) -> str:
    """torch says "unexpected pos" of a full disk; what the system said stands behind it."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    return cause.strerror if cause is not None else str(error)


def remove_stale_temporaries(folder: Path) -> list[Path]:
    """Removes temporary files of ours whose writer is gone, and returns them."""
    removed = []
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY_NAME.fullmatch(path.name)
        if match is None or _may_have_writer(path, match["host"], int(match["pid"])):
            continue
        path.unlink(missing_ok=True)
        removed.append(path)
    if removed:
        logger.info("removed %d unfinished files of an interrupted run from %s", len(removed), folder)
    return removed


def _may_have_writer(path: Path, host: str, pid: int) -> bool:
    if host != socket.gethostname():
        try:
            return time.time() - path.stat().st_mtime < ABANDONED_SECONDS
        except FileNotFoundError:
            return True
    if pid == os.getpid():  # process numbers repeat in containers; this process is not writing now
        return False
    return process_runs(pid)


# Early stopping: fairseq keeps its best score and patience in function attributes, which do not outlive the process
# but do outlive a training, so that the second job of a Hydra sweep in one process starts with the first one's best


@functools.wraps(_fairseq_trainer_save)
def save_with_early_stopping(self, filename, extra_state):
    """Adds the state of early stopping to what ``Trainer.save_checkpoint`` stores, and tells the trainer the time."""
    begin = time.monotonic()
    _fairseq_trainer_save(self, filename, {**extra_state, **early_stopping_state()})
    self.slt_save_seconds = time.monotonic() - begin


def early_stopping_state() -> dict:
    """``{EARLY_STOPPING: {"best", "num_runs"}}``, or nothing before the first validation with patience."""
    for function in _early_stopping_functions():
        if hasattr(function, "best"):
            return {EARLY_STOPPING: {"best": float(function.best), "num_runs": int(function.num_runs)}}
    return {}


def reset_early_stopping() -> None:
    """Forgets the previous training of this process."""
    for function in (*_early_stopping_functions(), checkpoint_utils.save_checkpoint):
        for name in ("best", "num_runs"):
            if hasattr(function, name):
                delattr(function, name)


def restore_early_stopping(extra_state: dict) -> None:
    """Sets what ``early_stopping_state`` saved; checkpoints of plain fairseq have nothing to set."""
    for function in _early_stopping_functions():
        for name, value in extra_state.get(EARLY_STOPPING, {}).items():
            setattr(function, name, value)


def _early_stopping_functions() -> list[Callable]:
    # the training script is __main__ under `python -m fairseq_cli.train`
    modules = [sys.modules.get(name) for name in ("fairseq_cli.train", "__main__")]
    return [module.should_stop_early for module in modules if hasattr(module, "should_stop_early")]


# Reading: a damaged file never leads to a silent restart from scratch


@functools.wraps(_fairseq_load_checkpoint)
def load_checkpoint(cfg, trainer, **passthrough_args):
    """Wraps the one call with which every training starts: cleans up, chooses the file, restores early stopping.

    Raises:
        CheckpointError: no file can be loaded, or the one that the user named cannot.
    """
    if cfg.write_checkpoints_asynchronously:
        raise CheckpointError(
            "checkpoint.write_checkpoints_asynchronously=true leaves truncated files after a crash and never updates "
            "checkpoint_last.pt; set it to false"
        )
    reset_early_stopping()
    local = not PathManager.path_requires_pathmanager(cfg.save_dir)
    if local and trainer.data_parallel_rank == 0:
        remove_stale_temporaries(Path(cfg.save_dir))
    fine_tunes = False
    if local:
        choice = _decide_on_first_rank(trainer, lambda: choose_restore_file(cfg, trainer.checkpoint_suffix))
        if choice is None:
            fine_tunes = cfg.finetune_from_model is not None
        elif choice != cfg.restore_file:
            cfg = copy.copy(cfg)
            cfg.restore_file, cfg.finetune_from_model = choice, None  # fairseq refuses both together
        _compare_task_state(cfg, choice, trainer)
    try:
        extra_state, epoch_itr = _fairseq_load_checkpoint(cfg, trainer, **passthrough_args)
    except Exception as error:  # fairseq hides what a model says of the weights behind a sentence of its own
        if isinstance(error.__context__, SltError):
            raise error.__context__ from None
        raise
    resumes = extra_state is not None and not (fine_tunes or cfg.reset_optimizer or cfg.reset_meters)
    if resumes:  # the condition under which fairseq restores the best score for checkpoint_best.pt
        restore_early_stopping(extra_state)
    if extra_state is not None and not (fine_tunes or cfg.reset_lr_scheduler or cfg.reset_dataloader):
        _step_scheduler(trainer, extra_state)
    return extra_state, epoch_itr


def _step_scheduler(trainer, extra_state: dict) -> None:
    """What fairseq does between two epochs, after it has saved: without it reduce_lr_on_plateau misses a validation."""
    place = extra_state["train_iterator"]
    if place["epoch"] > 1 and place["iterations_in_epoch"] == 0:
        trainer.lr_step(place["epoch"] - 1, extra_state.get("val_loss"))


def _compare_task_state(cfg, choice: str | None, trainer) -> None:
    """Lets a task of ours refuse a checkpoint of another vocabulary or source: fairseq asks it only when decoding."""
    if not type(trainer.task).__module__.startswith("slt_plugin."):
        return
    if choice is not None:
        file = Path(cfg.save_dir) / choice if choice == LAST else Path(choice)
        path = file.with_name(f"{file.name.removesuffix('.pt')}{trainer.checkpoint_suffix}.pt")
    else:
        path = cfg.continue_once or cfg.finetune_from_model  # fairseq adds no suffix to these
    if path is None or PathManager.path_requires_pathmanager(str(path)):
        return
    task_state = read_task_state(Path(path))
    if task_state:
        trainer.task.load_state_dict(task_state)


def read_task_state(path: Path) -> dict | None:
    """What the task stored in a checkpoint (here: vocabulary and source options); None where there is nothing."""
    mmap = zipfile.is_zipfile(
        path
    )  # reads the weights only when asked for; the format before torch 1.6 has no such way
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap).get("task_state")


def choose_restore_file(cfg, suffix: str) -> str | None:
    """The value of ``checkpoint.restore_file`` to resume from; None: there is nothing to resume.

    A file that the user named is taken or refused. For the default, checkpoint_last.pt, a file that is damaged or
    missing is replaced by the newest loadable checkpoint of the folder.

    Args:
        cfg: fairseq's CheckpointConfig.
        suffix: what fairseq puts before ".pt" in the names of sharded checkpoints, mostly "".

    Raises:
        CheckpointError
    """
    if cfg.restore_file != LAST:
        _require_loadable(cfg.restore_file.replace(".pt", f"{suffix}.pt"), "checkpoint.restore_file")
        return cfg.restore_file
    folder = Path(cfg.save_dir)
    last = folder / f"checkpoint_last{suffix}.pt"
    problems = {last: find_problem(last)}
    if problems[last] is None:
        return LAST
    others = [p for p in _checkpoints(folder, suffix) if p != last]
    for path in others:
        problems[path] = find_problem(path)
        if problems[path] is None:
            logger.warning(
                "RESUMING FROM AN OLDER CHECKPOINT: %s cannot be loaded (%s); resuming from %s instead. "
                "To start afresh use another checkpoint.save_dir",
                *(last, problems[last], path),
            )
            return str(path.with_name(path.name.removesuffix(f"{suffix}.pt") + ".pt"))
    if last.exists() or others:
        listing = "; ".join(f"{path.name}: {problem}" for path, problem in problems.items())
        raise CheckpointError(
            f"no checkpoint in {folder} can be loaded ({listing}). Training does not restart from scratch over them: "
            "move the files away or use another checkpoint.save_dir"
        )
    for option in ("continue_once", "finetune_from_model"):  # in fairseq's order; both wait for a first start
        if getattr(cfg, option) is not None:
            _require_loadable(getattr(cfg, option), f"checkpoint.{option}")
    return None


def find_problem(path: Path) -> str | None:
    """Why ``path`` is not a loadable fairseq checkpoint, or None if it is one. Reads the whole file once."""
    if not path.is_file():
        return "no such file"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch does not check the checksums
            if damaged is not None:
                return f"wrong checksum of {damaged}"
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:  # the format before torch 1.6, or half a file
            state = torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if not isinstance(state, dict) or "model" not in state:
        return "no fairseq checkpoint: it has no 'model'"
    return None


def _checkpoints(folder: Path, suffix: str) -> list[Path]:
    """fairseq's checkpoints of a folder, newest first."""
    pattern = re.compile(rf"{CHECKPOINT_NAME}{re.escape(suffix)}\.pt")
    paths = [p for p in folder.glob("checkpoint*.pt") if pattern.fullmatch(p.name) and p.is_file()]
    return sorted(paths, key=lambda p: p.stat().st_mtime_ns, reverse=True)


def _require_loadable(path: str, option: str) -> None:
    if PathManager.path_requires_pathmanager(path):
        return
    problem = find_problem(Path(path))
    if problem is not None:
        raise CheckpointError(f"{option}: {path} cannot be loaded ({problem}). Name another file or unset the option")


def _decide_on_first_rank(trainer, decide: Callable[[], str | None]) -> str | None:
    """All ranks must read the same file: the first one looks, the others hear what it found, or its error."""
    if trainer.data_parallel_world_size == 1:
        return decide()
    outcome = None
    if trainer.data_parallel_rank == 0:
        try:
            outcome = {"choice": decide(), "error": None}
        except CheckpointError as error:
            outcome = {"choice": None, "error": str(error)}
    outcome = distributed_utils.broadcast_object(
        outcome, src_rank=0, group=trainer.data_parallel_process_group, dist_device=trainer.device
    )
    if outcome["error"] is not None:
        raise CheckpointError(outcome["error"])
    return outcome["choice"]
