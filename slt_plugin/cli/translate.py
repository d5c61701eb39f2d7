"""``slt-translate``: sign language videos (or pose files) in, text out, from one checkpoint.

examples:
  slt-translate talk.mp4 --checkpoint runs/how2sign/checkpoint_best.pt --start 12.4 --end 15.9 --box auto
  slt-translate recordings/ --checkpoint runs/how2sign/checkpoint_best.pt --beam 5 --n-best 3 --json > out.jsonl
  slt-translate talk.mp4 --checkpoint runs/features/checkpoint_best.pt --encoder signhiera.pt

  slt-translate talk.mp4 --checkpoint sonar_asl.pt --box auto --target-lang eng_Latn fra_Latn deu_Latn zho_Hans

One line a file, path and text separated by a tab; with several languages also the language, with --n-best rank and
score, with --json one object a line.
A file that cannot be translated is reported on stderr and the others are done; the exit status is then 1.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from slt_plugin.cli.errors import EXPECTED_ERRORS, one_line
from slt_plugin.cli.translator import ModelOptions, Request, TooLongError, Translator
from slt_plugin.common.errors import SltError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all files were translated, 1 some were not or nothing could begin, 2 wrong usage."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.n_best > args.beam:
        parser.error(f"--n-best {args.n_best}: a beam of {args.beam} has no more than {args.beam} hypotheses")
    if args.end is not None and args.end <= (args.start or 0.0):
        parser.error(f"--end {args.end:g} is not after --start {args.start or 0:g}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options, request = _requested(args)
    try:
        translator = Translator(options)
        translator.check(request)
        files = translator.find(args.paths)
    except EXPECTED_ERRORS as error:
        print(f"slt-translate: {one_line(error)}", file=sys.stderr)
        return 1
    failed = 0
    for path in _progress(files):
        try:
            results = _translate(translator, path, request)
        except SltError as error:
            failed += 1
            print(f"slt-translate: {path}: {one_line(error)}", file=sys.stderr)
            if args.json:
                print(json.dumps({"path": str(path), "error": one_line(error)}, ensure_ascii=False), flush=True)
            continue
        for result in results:
            print(_line(result, args), flush=True)
    if failed:
        print(f"slt-translate: {failed} of {len(files)} files could not be translated", file=sys.stderr)
    return int(failed > 0)


def _requested(args: argparse.Namespace) -> tuple[ModelOptions, Request]:
    return (
        ModelOptions(args.checkpoint, args.encoder, cpu=args.cpu, fp16=args.fp16, bf16=args.bf16),
        Request(
            start=args.start,
            end=args.end,
            fps=args.fps,
            box=args.box,
            detector=args.detector,
            target_lang=tuple(args.target_lang or ()),
            beam=args.beam,
            n_best=args.n_best,
            lenpen=args.lenpen,
            max_len=args.max_len,
        ),
    )


def _translate(translator: Translator, path: Path, request: Request) -> list[dict]:
    """path, start, end, box, target_lang and hypotheses (text and score, best first), one for each language.

    Raises:
        SltError: the file cannot be read, or is too long for the model.
    """
    try:
        prepared = translator.prepare(path, request)
    except TooLongError as error:
        raise TooLongError(f"{error}: choose a part with --start and --end") from error
    return [
        {
            "path": str(path),
            "start": request.start,
            "end": request.end,
            "box": prepared.box,
            "target_lang": language,
            "hypotheses": [{"text": hypothesis.text, "score": hypothesis.score} for hypothesis in hypotheses],
        }
        for language, hypotheses in zip(
            request.target_lang or (None,), translator.decode(prepared, request), strict=True
        )
    ]


def _line(result: dict, args: argparse.Namespace) -> str:
    if args.json:
        return json.dumps(result, ensure_ascii=False)
    hypotheses = result["hypotheses"]
    several = len(args.target_lang or []) > 1
    begin = f"{result['path']}\t{result['target_lang']}" if several else result["path"]
    if args.n_best == 1:
        return f"{begin}\t{hypotheses[0]['text']}"
    return "\n".join(f"{begin}\t{rank}\t{h['score']}\t{h['text']}" for rank, h in enumerate(hypotheses, 1))


def _progress(files: list[Path]) -> Iterator[Path]:
    if len(files) > 1 and sys.stderr.isatty():
        from tqdm import tqdm

        return iter(tqdm(files, unit="file", file=sys.stderr))
    return iter(files)


def _seconds(value: str) -> float:
    seconds = float(value)  # argparse words the ValueError
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is no time in seconds")
    return seconds


def _box(value: str) -> str | tuple[float, ...]:
    from slt_plugin.data.manifest import PARSERS

    if value in ("auto", "none"):
        return value
    try:
        return PARSERS["box"](value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} (or auto, or none)") from error


def _at_least_one(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slt-translate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="VIDEO", help="files (videos, poses), or folders of them"
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="one .pt file, or an ensemble joined by ':'"
    )
    parser.add_argument(
        "--encoder",
        type=Path,
        metavar="PATH",
        help="for a checkpoint that reads features: the SignHiera they came from",
    )
    parser.add_argument("--start", type=_seconds, metavar="S", help="begin at this second")
    parser.add_argument("--end", type=_seconds, metavar="S", help="end at this second")
    parser.add_argument("--fps", type=float, metavar="F", help="frame rate, where the file does not know it")
    parser.add_argument(
        "--box", type=_box, default="none", metavar="auto|none|x0,y0,x1,y1",
        help="the signer: found by the face, the frame's middle square, or parts of width and height "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--detector", choices=("hog", "cnn"), default="hog", help="face detector of --box auto")
    parser.add_argument(
        "--target-lang",
        nargs="+",
        metavar="CODE",
        help="multilingual models: languages of the text (mBART: en_XX; SONAR: eng_Latn fra_Latn ...)",
    )
    parser.add_argument("--beam", type=_at_least_one, default=5)
    parser.add_argument("--n-best", type=_at_least_one, default=1, help="hypotheses a file, at most the beam")
    parser.add_argument(
        "--lenpen", type=float, default=1.0, help="fairseq's length penalty: above 1 favours long texts"
    )
    parser.add_argument("--max-len", type=_at_least_one, default=200, help="longest text, in tokens")
    parser.add_argument("--json", action="store_true", help="one JSON object a file")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true")
    precision.add_argument("--bf16", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
