#!/usr/bin/env python3
"""Size and speed of the small landmark models, sign_to_text_tiny and sign_to_text_small, on one CPU core.

    python scripts/bench_landmarks.py
    python scripts/bench_landmarks.py --frames 300 --tokens 30 --beam 1

Size: bytes of a checkpoint with the weights in fp32, and of its export (slt-import-checkpoint export-fp16), which is
what a CPU loads and then computes with in fp32. Speed: sentences in a second of the process's CPU time (other load on
the machine changes it little), decoded one by one by fairseq's beam search, with random weights: a sentence has exactly
as many tokens as asked for. Reading poses and taking them from video are not in it. The table goes to stdout.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from bench_machine import machine
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import GenerationConfig

import slt_plugin.tasks  # noqa: F401  registers models and tasks
from slt_plugin.checkpoints.export import export_fp16
from slt_plugin.cli.translation_file import configuration, write_translation_model
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.models.sign_to_text import PRESETS
from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig

NAMES = ("sign_to_text_tiny", "sign_to_text_small")


class Measured(NamedTuple):
    name: str
    parameters: int
    megabytes: float
    exported: float
    sentences_per_second: float


def measure(name: str, task: SignToTextTask, options: argparse.Namespace, folder: Path) -> Measured:
    """Writes, exports, loads and decodes."""
    torch.manual_seed(0)
    limit = options.tokens + 2
    cfg = configuration(task.cfg, PRESETS[name](source_encoder="pose", max_target_positions=limit), name)
    full, small = folder / f"{name}.pt", folder / f"{name}_fp16.pt"
    write_translation_model(full, cfg, task, task.build_model(cfg.model).state_dict())
    done = export_fp16(full, small)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(small)], arg_overrides={"data": ""})
    generation = GenerationConfig(beam=options.beam, min_len=options.tokens, max_len_b=options.tokens)
    model.prepare_for_inference_(SimpleNamespace(generation=generation))
    generator = task.build_generator([model], generation)
    seconds = []
    for i in range(options.sentences + 1):
        source = torch.randn(1, options.frames, task.source_channels)
        start = torch.tensor([task.target_dictionary.eos()])
        sample = {"id": torch.tensor([i]), "start_tokens": start, "net_input": {"src_tokens": source,
                  "src_lengths": torch.tensor([options.frames])}}  # fmt: skip
        begin = time.process_time()
        task.inference_step(generator, [model], sample)
        seconds.append(time.process_time() - begin)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    speed = options.sentences / sum(seconds[1:])  # the first one warms up
    return Measured(name, parameters, done.bytes_before / 1e6, done.bytes_after / 1e6, speed)


def vocabulary(folder: Path, symbols: int) -> SignToTextTask:
    """A task with landmarks of all parts and a vocabulary of so many symbols."""
    import train_sentencepiece

    generator = torch.Generator().manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(letters[i] for i in torch.randint(26, (6,), generator=generator)) for _ in range(symbols)]
    texts = [" ".join(words[i : i + 10]) for i in range(0, symbols, 10)]
    write_manifest(folder / "train.tsv", [Row(str(i), "x", text) for i, text in enumerate(texts)])
    size = ("--model-type", "bpe", "--vocab-size", str(symbols))
    status = train_sentencepiece.main([str(folder / "train.tsv"), "--out", str(folder / "spm"), *size])
    if status:
        raise SystemExit(status)
    return SignToTextTask(
        SignToTextTaskConfig(data="", codec_path=str(folder / "spm.model"), eval_bleu=False, train_subset="", seed=1)
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, what in (
        ("sentences", 20, "decoded of each model"),
        ("frames", 200, "of a sentence"),
        ("tokens", 20, "of its translation"),
        ("beam", 5, "of the search"),
        ("symbols", 7000, "of the vocabulary"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{what} (default: %(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        task = vocabulary(Path(folder), options.symbols)
        rows = [measure(name, task, options, Path(folder)) for name in NAMES]
    print("| preset | parameters | fp32 | fp16 export | sentences/s |\n|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| `{row.name}` | {row.parameters / 1e6:.1f} M | {row.megabytes:.1f} MB | {row.exported:.1f} MB | "
            f"{row.sentences_per_second:.1f} |"
        )
    print(
        f"\n{options.symbols} symbols, {options.frames} frames of all landmarks, {options.tokens} tokens a sentence, "
        f"beam {options.beam}, one thread, CPU time; {machine()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
