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
from slt_plugin.common.errors import SltError
from slt_plugin.models.errors import OptionError

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all files were translated, 1 some were not or nothing could begin, 2 wrong usage."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.n_best > args.beam:
        parser.error(f"--n-best {args.n_best}: a beam of {args.beam} has no more than {args.beam} hypotheses")
    if args.end is not None and args.end <= (args.start or 0.0):
        parser.error(f"--end {args.end:g} is not after --start {args.start or 0:g}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        translator = Translator(args)
        files = translator.find(args.paths)
    except EXPECTED_ERRORS as error:
        print(f"slt-translate: {one_line(error)}", file=sys.stderr)
        return 1
    failed = 0
    for path in _progress(files):
        try:
            results = translator.translate(path)
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


class Translator:
    """The model of a checkpoint, and how media files become its input.

    Raises:
        SltError: a checkpoint or options that cannot be used.
    """

    def __init__(self, args: argparse.Namespace):
        from omegaconf import OmegaConf

        import slt_plugin.tasks  # noqa: F401  registers everything
        from slt_plugin.cli.decoding import Models
        from slt_plugin.cli.evaluation_checks import check_checkpoints

        self.args = args
        generation = {"beam": args.beam, "nbest": args.n_best, "lenpen": args.lenpen, "max_len_b": args.max_len}
        cfg = OmegaConf.create({
            "generation": {**generation, "max_len_a": 0.0},
            "common": {"cpu": args.cpu, "fp16": args.fp16, "bf16": args.bf16},
        })  # fmt: skip
        options = {"data": "", "media_root": None}
        if args.target_lang:  # the rows that are made here name their language
            options["target_lang"] = None
        self.models = Models(check_checkpoints(args.checkpoint), cfg, options)
        self.task = self.models.task
        self._check_languages()
        self.kind = str(self.task.cfg.source)
        self.source = self._encoded_video() if args.encoder is not None else None
        if self.source is not None:
            self.kind = "video"
        if args.box != "none" and self.kind != "video":
            raise OptionError(f"--box {args.box}: {args.checkpoint} reads {self.kind}, which have no box")

    def _check_languages(self) -> None:
        codec, given = self.task.codec, self.args.target_lang
        if given and not codec.languages:
            raise OptionError(f"--target-lang: {self.args.checkpoint} has no language tokens: leave it out")
        if codec.languages and not given and not self.task.cfg.target_lang:
            raise OptionError(
                f"{self.args.checkpoint} writes {len(codec.languages)} languages: choose with --target-lang "
                f"({self.task.example_language()}, ...)"
            )
        for language in given or []:
            codec.language_id(language)  # an unknown one is an error before any video is read

    def find(self, paths: Sequence[Path]) -> list[Path]:
        """The media files that the arguments name, those of a folder in order of their names.

        Raises:
            OptionError: a folder without any.
        """
        found = []
        for path in paths:
            if not path.is_dir() or self._is_medium(path):
                found.append(path)
                continue
            inside = sorted(child for child in path.iterdir() if self._is_medium(child))
            if not inside:
                raise OptionError(f"{path} is a folder without {self._media_names()}")
            found += inside
        return found

    def translate(self, path: Path) -> list[dict]:
        """path, start, end, box, target_lang and hypotheses (text and score, best first), one for each language.

        Raises:
            SltError: the file cannot be read, or is too long for the model.
        """
        from slt_plugin.data.errors import DataError
        from slt_plugin.data.manifest import Row

        if not self._is_medium(path):
            if not path.exists():
                raise DataError("does not exist")
            raise DataError(f"not what this checkpoint reads: give {self._media_names()}")
        args = self.args
        box = self._box(path)
        languages = args.target_lang or [None]
        rows = [
            Row(path.name, str(path.resolve()), start=args.start, end=args.end, fps=args.fps, box=box, text_lang=lang)
            for lang in languages
        ]
        dataset = self.task.dataset_of(rows, Path("/"), path, source=self.source)
        limits = self.models.limits()
        _, ignored = dataset.filter_indices_by_size(dataset.ordered_indices(), limits)
        if ignored:
            raise DataError(f"{dataset.limit_message(ignored[:1], limits)}: choose a part with --start and --end")
        # the file is read and encoded once; the rows differ in their language alone
        sample = dataset.collater([dataset[0]])
        tokens = [dataset.language_tokens([index]) for index in range(len(rows))]
        return [
            {
                "path": str(path),
                "start": args.start,
                "end": args.end,
                "box": box,
                "target_lang": language,
                "hypotheses": [
                    {"text": self.task.codec.decode(h["tokens"]), "score": round(float(h["score"]), 4)}
                    for h in hypotheses[0][: args.n_best]
                ],
            }
            for language, hypotheses in zip(languages, self.models.generate_each(sample, tokens), strict=True)
        ]

    def _encoded_video(self):
        """Videos as the features that a checkpoint of ``task.source=features`` reads."""
        from slt_plugin.extraction.encoded_video import EncodedVideo

        if self.kind != "features":
            raise OptionError(
                f"--encoder {self.args.encoder}: {self.args.checkpoint} reads {self.kind}, not features: leave it out"
            )
        return EncodedVideo(
            Path("/"),
            self.args.encoder,
            fingerprint=self.task.feature_origin.fingerprint,
            channels=self.task.cfg.feature_channels,
            step=self.task.cfg.step_frames,
            device=self.models.device,
        )

    def _is_medium(self, path: Path) -> bool:
        from slt_plugin.data import features, pose_files, video

        if self.kind == "video":
            return video.is_video(path) and path.exists()
        if self.kind == "features":
            return features.is_features(path) or path.suffix.lower() == ".npy"
        if path.is_dir():
            return any(path.glob("*_keypoints.json"))
        return path.suffix.lower() in pose_files.SUFFIXES

    def _media_names(self) -> str:
        from slt_plugin.data import features, pose_files, video

        if self.kind == "video":
            return f"videos ({' '.join(sorted(video.VIDEO_SUFFIXES))}) or folders of images"
        if self.kind == "features":
            return f"features ({features.KINDS}), or videos together with --encoder"
        return f"poses ({pose_files.KINDS})"

    def _box(self, path: Path) -> tuple[float, float, float, float] | None:
        from slt_plugin.data import video
        from slt_plugin.data.signer_box import large_frame_without_box, signer_box

        if self.kind != "video":
            return None
        args = self.args
        if args.box == "auto":
            found = signer_box(path, args.start, args.end, detector=args.detector, fps=args.fps)
            if found.faces_found == 0:
                logger.warning("%s: no face found; the box is the middle of the frame", path)
            return found.box
        if args.box != "none":
            return args.box
        info = video.probe(path, args.start, args.end, fps=args.fps)
        options = self.source.options if self.source is not None else None
        size = self.task.cfg.clip_size if options is None else options.size
        warning = large_frame_without_box(info.width, info.height, None, size)
        if warning is not None:
            logger.warning("%s: %s; here: --box auto", path, warning)
        return None


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
