"""Trainings by fairseq's own entry point in forked processes: they start in a moment, because all is imported already.

The forked process leads a process group of its own, so that its loader workers can be killed with it.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from conftest import ROOT
from fairseq_cli.hydra_train import cli_main

import slt_plugin.tasks  # noqa: F401  registers everything
from slt_plugin.launch.ranks import free_port, rank_words

SMALL = (
    "+model.encoder_layers=1", "+model.decoder_layers=1", "+model.encoder_embed_dim=32", "+model.decoder_embed_dim=32",
    "+model.encoder_ffn_embed_dim=32", "+model.decoder_ffn_embed_dim=32", "+model.pose_dim=32",
    'model.pose_strides="2,2"', "dataset.max_tokens=200", "task.augment_noise=0.05", "task.eval_max_len=12",
    "lr_scheduler.warmup_updates=4", "common.log_interval=1", "model.dropout=0.1", "dataset.max_tokens_valid=400",
)  # fmt: skip


class Forked:
    """A process that runs ``function``; what it writes goes to ``log``."""

    def __init__(self, function: Callable[[], int | None], log: Path, environ: dict[str, str] | None = None):
        self.log, self.status = log, None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setpgid(0, 0)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            faulthandler.enable(sys.stderr)
            os.environ.update(environ or {})
            os.chdir(ROOT)
            status = function() or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001  the log is where the test looks
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status & 255)

    def poll(self) -> int | None:
        """The exit status, minus the number of the signal it died of; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGABRT)  # faulthandler writes where it hangs
                time.sleep(0.5)
                self.kill()
                raise TimeoutError(f"still running after {timeout} s:\n{self.text()[-3000:]}")
            time.sleep(0.01)
        return self.status

    def send(self, number: int) -> None:
        """A signal to the process itself, as SLURM sends it to the tasks of a step."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """With its workers, as when a node goes down."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def train_words(corpus: Path, spm: Path, save_dir: Path, *options: str) -> list[str]:
    """12 updates of two batches each, over the border of an epoch; a validation every 4."""
    return [
        "--config-dir", "slt_plugin/config/finetune", "--config-name", "fingerspelling_pose",
        "common.user_dir=slt_plugin", f"task.data={corpus}", f"task.codec_path={spm}",
        f"checkpoint.save_dir={save_dir}", "optimization.max_update=12", "optimization.update_freq=[2]",
        "checkpoint.save_interval_updates=4", "dataset.validate_interval_updates=4", "checkpoint.patience=5",
        "dataset.num_workers=0", *SMALL, *options,
    ]  # fmt: skip


def run_stock(words: Sequence[str], before: Callable[[], None] | None = None) -> None:
    """fairseq-hydra-train with these words; ``before``: called first, to arrange what a test is about."""
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    if before is not None:
        before()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["fairseq-hydra-train", *words]
    cli_main()


def start(
    words: Sequence[str], log: Path, *, ranks: int = 1, before: Callable[[], None] | None = None, **environ: str
) -> list[Forked]:
    """As many processes as ranks; rank 0 writes to ``log``, the others beside it."""
    if ranks == 1:
        return [Forked(lambda: run_stock(words, before), log, environ)]
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(ranks):
        env = {**environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        path = log if rank == 0 else log.with_name(f"{log.name}.{rank}")
        processes.append(Forked(lambda env=env: run_stock([*words, *rank_words(words, env)], before), path, env))
    return processes


def finish(processes: Sequence[Forked]) -> list[int]:
    return [process.wait() for process in processes]


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def updates(state: dict) -> int:
    return state["optimizer_history"][-1]["num_updates"]


def difference(a, b, name: str = "") -> str | None:
    """Where two nested structures of tensors and plain values differ, None where they are equal bit for bit."""
    if torch.is_tensor(a):
        return None if torch.is_tensor(b) and torch.equal(a, b) else name
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{name}: {sorted(map(str, a.keys() ^ b.keys()))}"
        return next((found for key in a if (found := difference(a[key], b[key], f"{name}.{key}"))), None)
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return name
        return next(
            (f for i, (x, y) in enumerate(zip(a, b, strict=True)) if (f := difference(x, y, f"{name}.{i}"))), None
        )
    return None if a == b else f"{name}: {a} and {b}"


def training_difference(once: Path, parts: Path) -> str | None:
    """What differs between the last checkpoints of two folders: weights, optimiser, scores, early stopping, place in
    the data; None where nothing does. Meters of time and speed may differ.
    """
    a, b = (load(folder / "checkpoint_last.pt") for folder in (once, parts))
    for state in (a, b):  # it has an entry for each time that the training was begun
        state["optimizer_history"] = state["optimizer_history"][-1]
        # reduce_lr_on_plateau counts its calls, on which nothing depends
        state["optimizer_history"]["lr_scheduler_state"].pop("last_epoch", None)
    for key in ("model", "last_optimizer_state", "optimizer_history"):
        if found := difference(a[key], b[key], key):
            return found
    for key in ("best", "early_stopping", "train_iterator", "val_loss"):
        if found := difference(a["extra_state"][key], b["extra_state"][key], key):
            return found
    a, b = (load(folder / "checkpoint_best.pt")["model"] for folder in (once, parts))
    return difference(a, b, "checkpoint_best.pt")
