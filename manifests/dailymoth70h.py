"""Build DailyMoth-70h manifests (American Sign Language to English), and download the corpus.

    python manifests/dailymoth70h.py --corpus dailymoth-70h --download --out data/dailymoth70h

fetches the tables and the clips (--clips unblurred or blurred) into the folder dailymoth-70h, and writes train.tsv,
valid.tsv, test.tsv and beside each a list of what was dropped and why (train.dropped.txt: tab-separated; not .tsv, so
that `slt-manifest check data/dailymoth70h/*.tsv` takes manifests only). Without --out it only downloads.

A row is a clip that was cut and cropped to 224 x 224 pixels around the signer already, so it has neither times nor
box: it lies in <clips>/videos/<first 5 characters of its name>/<name>. id is its name without suffix. The tables do not
tell the signers. raw_videos can be downloaded, but no manifest is built of them.

text_lang is "en". Models with another code for English (SONAR's decoder: eng_Latn) are told at generation:
--target-lang eng_Latn, or task.target_lang=eng_Latn.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath

from dailymoth70h_archives import MD5, obtain
from how2sign import Media, inspect_media, manifest_path
from how2sign_annotations import Report

from slt_plugin.checkpoints.releases import BASE_URL
from slt_plugin.common.download import DownloadError
from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.data.manifest_formats import read_ssvp

TABLES = {"train": "train.tsv", "valid": "val.tsv", "test": "test.tsv"}
CLIPS = ("unblurred", "blurred")
WARNING_WITHOUT_CLIPS = (
    "%s is not a folder: the manifests name the clips that should be in it, but nothing was checked and the rows tell "
    "no lengths. Add --download, or --media-folder where they lie elsewhere"
)
logger = logging.getLogger(__name__)


class DailyMothError(DataError):
    """Tables or folders that no manifest can be built from."""


def find_table(corpus: Path, split: str) -> Path:
    """The table of a split.

    Raises:
        DailyMothError: it is not there; says what is.
    """
    path = corpus / "manifests" / TABLES[split]
    if not path.is_file():
        there = listing(sorted(p.name for p in path.parent.glob("*.tsv"))) or "no tables"
        raise DailyMothError(
            f"{path} is missing ({path.parent} has {there}): add --download, or give --{split} FILE or another --split"
        )
    return path


def find_clips(rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """row's path (as read_ssvp gives it) -> the clip, of those that are there.

    Raises:
        DailyMothError: there is none at all, so the folder is the wrong one.
    """
    found = {row.path: path for row in rows if (path := clip_path(row, folder)).is_file()}
    if rows and not found:
        raise DailyMothError(
            f"none of the {len(rows)} clips is below {folder}, for example {clip_path(rows[0], folder)}; give the "
            "folder that holds the folders of five characters: --media-folder"
        )
    return found


def clip_path(row: Row, folder: Path) -> Path:
    return folder / PurePosixPath(row.path).relative_to("videos")


def build_rows(
    rows: Sequence[Row], clips: dict[str, Media] | None, folder: Path, root: Path | None, out: Path, report: Report
) -> list[Row]:
    """The manifest's rows; what is dropped, and repeated names, go to the report.

    Args:
        rows: of the table, one a line.
        clips: row's path -> what it holds; None where the clips are not here.
    """
    built, seen = [], set()
    for line, row in enumerate(rows, start=1):
        if row.path in seen:
            report.add(line, row.id, "kept", "name is there twice; new id", PurePosixPath(row.path).name)
        seen.add(row.path)
        clip = Media(clip_path(row, folder)) if clips is None else clips.get(row.path)
        if row.text is None:
            report.add(line, row.id, "dropped", "no text")
        elif clip is None:
            report.add(line, row.id, "dropped", "clip missing", str(clip_path(row, folder)))
        elif clip.problem is not None:
            report.add(line, row.id, "dropped", "clip cannot be used", clip.problem)
        else:
            built.append(
                replace(
                    row,
                    path=manifest_path(clip.path, root, out),
                    end=None,  # the clip is the row: its file tells where it ends
                    num_frames=clip.num_frames or None,
                    fps=clip.fps,
                    sign_lang="ase",
                    text_lang="en",
                    corpus="dailymoth70h",
                )
            )
    return built


# command


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = _parser()
    options = parser.parse_args(argv)
    if options.out is None and options.download is None:
        parser.error("give --out DIR for manifests, --download for the corpus, or both")
    try:
        if options.download is not None:
            names = options.download or ["manifests", f"{options.clips}_clips"]
            for line in obtain(names, options.corpus, options.mirror, dict(options.md5), options.timeout):
                print(line, flush=True)
        return 0 if options.out is None else _build(options)
    except (DataError, DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _build(options: argparse.Namespace) -> int:
    splits = options.split or [split for split in TABLES if getattr(options, split)] or list(TABLES)
    targets = {split: options.out / f"{split}.tsv" for split in splits}
    there = [str(path) for path in targets.values() if path.exists()]
    if there and not options.overwrite:
        raise DailyMothError(f"{', '.join(there)} exists: add --overwrite to replace it, or choose another --out")
    tables = {split: getattr(options, split) or find_table(options.corpus, split) for split in targets}
    rows = {split: read_ssvp(path).rows for split, path in tables.items()}
    folder = options.media_folder or options.corpus / f"{options.clips}_clips" / "videos"
    clips = None
    if folder.is_dir():
        clips = inspect_media(find_clips(list(chain(*rows.values())), folder), "clips", options.workers)
    elif options.media_folder is not None:
        raise DailyMothError(f"--media-folder {folder} is not a folder")
    else:
        logger.warning(WARNING_WITHOUT_CLIPS, folder)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for split, target in targets.items():
        report = Report()
        built = build_rows(rows[split], clips, folder, options.media_root, options.out, report)
        report.write(options.out / f"{split}.dropped.txt")
        failed |= not built
        if built:
            write_manifest(target, built)
        length = f", {sum(row.num_frames / row.fps for row in built) / 3600:.2f} h" if clips is not None else ""
        print(f"{target}: {len(built)} rows{length}" + ("" if built else ", not written"))
        for line in report.summary():
            print(f"  {line}")
        if report.notes:
            print(f"  listed in {options.out / f'{split}.dropped.txt'}")
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    help_corpus = "the corpus: manifests/, unblurred_clips/, ...; where --download puts them"
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help=help_corpus)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the manifests")
    help_download = f"of {', '.join(MD5)}; without a name: manifests and the clips of --clips"
    parser.add_argument("--download", nargs="*", choices=tuple(MD5), metavar="ARCHIVE", help=help_download)
    help_clips = "which clips (default: %(default)s, as the name of the released weights says: dm_70h_ub)"
    parser.add_argument("--clips", choices=CLIPS, default=CLIPS[0], help=help_clips)
    parser.add_argument("--split", nargs="+", choices=tuple(TABLES), help="default: all, or those with a FILE")
    for split, name in TABLES.items():
        parser.add_argument(f"--{split}", type=Path, metavar="FILE", help=f"in place of CORPUS/manifests/{name}")
    help_folder = "the clips, in folders of five characters (default: CORPUS/<clips>_clips/videos)"
    parser.add_argument("--media-folder", type=Path, metavar="DIR", help=help_folder)
    help_root = "write paths relative to it, for task.media_root (default: relative below --out, else absolute)"
    parser.add_argument("--media-root", type=Path, metavar="DIR", help=help_root)
    parser.add_argument("--workers", type=_count, default=2, help="processes that open clips; 0 = this one only")
    parser.add_argument("--overwrite", action="store_true", help="replace manifests that are there")
    parser.add_argument("--mirror", type=_url, metavar="URL", default=BASE_URL, help="in place of %(default)s")
    help_md5 = "expected sum, where a mirror has other archives than the published ones"
    parser.add_argument("--md5", type=_sum, nargs="+", metavar="ARCHIVE=MD5", default=[], help=help_md5)
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="without an answer")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not an http or https URL")
    return text


def _sum(text: str) -> tuple[str, str]:
    name, _, digest = text.partition("=")
    if name not in MD5 or not re.fullmatch(r"[0-9a-fA-F]{32}", digest):
        raise argparse.ArgumentTypeError(f"{text!r}: give {'|'.join(MD5)}=32 hexadecimal digits")
    return name, digest


if __name__ == "__main__":
    sys.exit(main())
