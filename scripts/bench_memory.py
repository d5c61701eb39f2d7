#!/usr/bin/env python3
"""Peak memory of full and of LoRA fine-tuning of a T5, measured in trainings as users run them.

    python scripts/bench_memory.py                                   # T5 small and base on the CPU, some minutes
    python scripts/bench_memory.py --models google-t5/t5-3b --ways lora "lora, recomputing" --precision bf16

Each training runs in a process of its own: fairseq's loop and Adam on a config of ours and random features, a
checkpoint at the end; the model has random values in the size of the release. Memory is the largest resident memory of
the process (VmHWM of /proc, which begins with the process); on a GPU also what torch's allocator holds at the end,
which does not shrink before. recomputing: model.checkpoint_activations=true.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench_machine import machine

ROOT = Path(__file__).parents[1]
CONFIG, CHANNELS, PIECES, ROWS = "hf_t5_how2sign_features", 768, 32_000, 16
WAYS = {
    "full": (),
    "full, recomputing": ("model.checkpoint_activations=true",),
    "lora": ("model.use_lora=true",),
    "lora, recomputing": ("model.use_lora=true", "model.checkpoint_activations=true"),
}


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write_model(folder: Path, sizes: dict) -> Path:
    """A random model of these sizes (Hugging Face's names) and a vocabulary of made-up words, as the hub has them."""
    import torch
    from sentencepiece import sentencepiece_model_pb2 as spm_model
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(1)
    AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**sizes)).save_pretrained(folder)
    spm = spm_model.ModelProto()
    spm.trainer_spec.model_type = spm_model.TrainerSpec.UNIGRAM
    spm.trainer_spec.pad_id, spm.trainer_spec.eos_id, spm.trainer_spec.unk_id, spm.trainer_spec.bos_id = 0, 1, 2, -1
    kinds = spm_model.ModelProto.SentencePiece
    specials = [("<pad>", kinds.CONTROL), ("</s>", kinds.CONTROL), ("<unk>", kinds.UNKNOWN)]
    for piece, kind in specials + [(f"▁w{i}", kinds.NORMAL) for i in range(PIECES - len(specials))]:
        spm.pieces.add(piece=piece, score=-float(len(piece)), type=kind)
    (folder / "spiece.model").write_bytes(spm.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    return folder


def write_corpus(folder: Path, steps: int, tokens: int) -> Path:
    """Rows of so many steps of features and so many tokens of text."""
    from slt_plugin.data.manifest import Row, write_manifest

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        np.save(folder / f"{i}.npy", rng.normal(size=(steps, CHANNELS)).astype(np.float32))
        text = " ".join(f"w{n}" for n in rng.integers(0, 1000, tokens - 1))
        rows.append(Row(f"row{i}", f"{i}.npy", text, num_frames=steps))
    for split in ("train", "valid"):
        write_manifest(folder / f"{split}.tsv", rows)
    return folder


def words(args: argparse.Namespace, corpus: Path, model: Path, save_dir: Path) -> list[str]:
    """The options of a training, but for the way."""
    return [
        f"task.data={corpus}", f"model.hf_model={model}", f"checkpoint.save_dir={save_dir}", "task.eval_bleu=false",
        "checkpoint.best_checkpoint_metric=loss", "checkpoint.maximize_best_checkpoint_metric=false",
        "dataset.max_tokens=null", f"dataset.batch_size={args.batch}", "dataset.num_workers=0",
        "dataset.disable_validation=true", "optimization.update_freq=[1]", f"optimization.max_update={args.updates}",
        f"common.cpu={str(args.device == 'cpu').lower()}", f"common.bf16={str(args.precision == 'bf16').lower()}",
        f"common.user_dir={ROOT / 'slt_plugin'}",
    ]  # fmt: skip


def peak_memory() -> int:
    """Bytes: the largest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Parameters(logging.Handler):
    """Keeps what the model logs about its parameters."""

    trained = total = "?"

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("trainable parameters"):
            self.trained, self.total = record.args[:2]


def train(overrides: Sequence[str]) -> dict:
    """One training in this process; what it took."""
    import torch
    from fairseq.dataclass.initialize import add_defaults, hydra_init
    from fairseq_cli import train
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import slt_plugin.tasks  # noqa: F401  registers everything
    from slt_plugin.cli.training import CONFIGS

    hydra_init(CONFIG)
    with initialize_config_dir(str(CONFIGS / "finetune"), version_base="1.1"):
        cfg = compose(CONFIG, overrides=list(overrides))
    add_defaults(cfg)
    counts = Parameters()
    logging.getLogger("slt_plugin").addHandler(counts)
    logging.getLogger("slt_plugin").setLevel(logging.INFO)
    imports = peak_memory()
    train.main(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)))
    return {
        "imports": imports,
        "peak": peak_memory(),
        "gpu": torch.cuda.memory_reserved() if torch.cuda.is_available() and not cfg.common.cpu else None,
        "trained": counts.trained,
        "total": counts.total,
        "checkpoint": (Path(cfg.checkpoint.save_dir) / "checkpoint_last.pt").stat().st_size,
    }


def in_a_child(overrides: Sequence[str]) -> dict:
    """``train`` in a process of its own.

    Raises:
        RuntimeError: the training failed; the message ends as its log does.
    """
    command = [sys.executable, __file__, "--child", *overrides]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        raise RuntimeError(f"the training failed with status {child.returncode}:\n{child.stderr[-3000:]}")
    return json.loads(lines[-1])


def row(model: str, way: str, found: dict) -> str:
    gigabytes = [found["peak"] / 1e9, (found["peak"] - found["imports"]) / 1e9]
    cells = [model, way, f"{found['trained']} / {found['total']}", *(f"{value:.2f} GB" for value in gigabytes)]
    cells += [f"{found['checkpoint'] / 1e6:,.1f} MB"]
    cells += [] if found["gpu"] is None else [f"{found['gpu'] / 1e9:.2f} GB"]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["--child"]:
        print(json.dumps(train(given[1:])))
        return 0
    from hf_parameters import SIZES

    known = {name: sizes for name, sizes in SIZES.items() if sizes["model_type"] == "t5"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["google-t5/t5-small", "google-t5/t5-base"], choices=known)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch (default: %(default)s)")
    parser.add_argument("--source", type=int, default=256, help="steps of features a row (default: %(default)s)")
    parser.add_argument("--target", type=int, default=32, help="tokens a row (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--folder", type=Path, help="where models and checkpoints lie meanwhile (default: temporary)")
    args = parser.parse_args(given)
    head = ["model", "fine-tuning", "trained / all parameters", "peak memory", "of it after the imports", "checkpoint"]
    head += ["GPU memory"] if args.device == "cuda" else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in args.models:
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            folder = Path(temporary)
            progress(f"{name}: writing a random model of its size")
            model = write_model(folder / "model", known[name])
            corpus = write_corpus(folder / "corpus", args.source, args.target)
            for way in args.ways:
                progress(f"{name}, {way}: {args.updates} updates")
                save_dir = folder / way.replace(", ", "_")
                lines.append(row(name, way, in_a_child([*words(args, corpus, model, save_dir), *WAYS[way]])))
                progress(lines[-1])
    print("\n".join(lines))
    print(
        f"\n{machine(args.device)}; {args.precision}, batches of {args.batch} rows of {args.source} steps and "
        f"{args.target} tokens, {args.updates} updates"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
