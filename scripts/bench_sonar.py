#!/usr/bin/env python3
"""Memory, time and rounding of SONAR's ASL translator at its full size, with random weights.

    python scripts/bench_sonar.py                     # 16 GB of disk (freed at the end), 10 GB of memory, minutes
    python scripts/bench_sonar.py --folder /scratch   # keeps the files there and uses them again

Writes files in the release's layouts (random weights; a vocabulary of 256,000 made-up pieces), runs
``slt-import-checkpoint sonar-asl`` and ``slt-translate`` as a user would, each in a process of its own whose largest
resident memory Linux tells, and compares the embeddings and logits of half precision with those of fp32.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from bench_machine import machine
from sentencepiece import sentencepiece_model_pb2 as spm_model

from slt_plugin.checkpoints.sonar_text import SonarTextSize, build_text_decoder
from slt_plugin.cli.import_sonar import DECODER, DTYPES, ENCODER, SIGN_HIERA, SPM
from slt_plugin.modules.hiera import VARIANTS
from slt_plugin.modules.sonar import SonarEncoder, SonarEncoderSize
from slt_plugin.text.codec import build_codec

PIECES = 256_000


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def vocabulary(path: Path) -> None:
    """A SentencePiece model of as many pieces as SONAR's."""
    model = spm_model.ModelProto()
    model.trainer_spec.model_type = spm_model.TrainerSpec.UNIGRAM
    kinds = spm_model.ModelProto.SentencePiece
    specials = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    for piece, kind in specials + [(f"▁w{i}", kinds.NORMAL) for i in range(PIECES - len(specials))]:
        model.pieces.add(piece=piece, score=-float(len(piece)), type=kind)
    path.write_bytes(model.SerializeToString())


def write_release(folder: Path) -> None:
    """The release's files, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    if not (folder / SPM).is_file():
        vocabulary(folder / SPM)
    if not (folder / SIGN_HIERA).is_file():
        state = VARIANTS["base_128x224"]().state_dict()
        names = [name for name in state if not name.startswith(("norm.", "head."))]
        torch.save({"model": {name: state[name] for name in names}}, folder / SIGN_HIERA)
    if not (folder / ENCODER).is_file():
        state = SonarEncoder(SonarEncoderSize()).state_dict()
        state = {
            name.replace("feature_projection.linear", "encoder.feature_projection.feature_proj").replace(
                "feature_projection.scale", "encoder.feature_projection.feature_proj_scale"
            ): tensor
            for name, tensor in state.items()
        }
        state["shared.weight"] = torch.randn(32128, 1024)
        state["shared.weight"][0] = state.pop("start")
        torch.save({"student": state}, folder / ENCODER)
    if not (folder / DECODER).is_file():
        state = build_text_decoder(SonarTextSize(), build_codec("sonar", folder / SPM).dictionary).state_dict()
        del state["version"]
        torch.save({"state_dict": state}, folder / DECODER)


def write_video(path: Path, seconds: int = 6) -> None:
    """Moving noise of the size that the release was trained on."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 224
        stream.pix_fmt = "yuv420p"
        for _ in range(25 * seconds):
            image = rng.integers(0, 255, (28, 28, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def run(*command: str) -> tuple[float, float]:
    """(seconds, largest resident memory in GB, mapped files included) of a command."""
    progress("+ " + " ".join(command))
    begun, peak = time.monotonic(), 0
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # not getrusage: its largest memory of a child is at least what this process had when it started the child
    while child.poll() is None:
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        peak = max(peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        time.sleep(0.05)
    if child.returncode:
        raise SystemExit(f"{command[0]} failed with status {child.returncode}")
    return time.monotonic() - begun, peak * 1024 / 1e9


def outputs(checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding of fixed random features, and the logits after a fixed prefix, both in fp32."""
    from fairseq import checkpoint_utils

    import slt_plugin.tasks  # noqa: F401  registers everything

    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": ""})
    features = torch.randn(1, 24, 768, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits, extra = models[0].eval()(features, torch.tensor([24]), torch.tensor([[2, PIECES + 47, 9, 99, 999]]))
    return extra["embedding"].float(), logits.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are kept (default: a temporary folder)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        progress(f"writing random files of the release's size into {folder}")
        write_release(folder)
        write_video(folder / "clip.mp4")
        lines = ["| weights | import: memory, time | slt-translate, 2 languages: memory, time | embedding | logits |"]
        lines.append("|---|---|---|---|---|")
        exact = None
        for dtype in ("fp32", *(dtype for dtype in args.dtypes if dtype != "fp32")):
            video, features = folder / f"video_{dtype}.pt", folder / f"features_{dtype}.pt"
            for path in (video, features):
                path.unlink(missing_ok=True)
            command = ("slt-import-checkpoint", "sonar-asl", str(folder))
            importing = run(*command, str(video), "--dtype", dtype)
            run(*command, str(features), "--dtype", dtype, "--source", "features")
            languages = ("--target-lang", "eng_Latn", "fra_Latn")
            words = ("--checkpoint", str(video), "--max-len", "20", "--cpu", *languages)
            translating = run("slt-translate", str(folder / "clip.mp4"), *words)
            values = outputs(features)
            exact = exact or values
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(values, exact, strict=True)]
            shown = [f"{memory:.1f} GB, {seconds:.0f} s" for seconds, memory in (importing, translating)]
            lines.append(f"| {dtype} | {' | '.join(shown)} | {errors[0]:.2%} | {errors[1]:.2%} |")
            video.unlink()
            features.unlink()
    print("\n".join(lines))
    print(f"\n{machine()}; embedding and logits: relative difference from fp32")


if __name__ == "__main__":
    main()
