"""slt-manifest adopt-features: feature files of other projects into a store, with a manifest of them."""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from slt_plugin.cli.progress import progress
from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import read_manifest, write_manifest

# what must be stated, as the files do not tell it; "unknown" is an answer
REQUIRED = {
    "checkpoint": "name or sha256 of the weights",
    "variant": "the network, e.g. base_128x224 or i3d",
    "fps": "frames per second at which videos were sampled",
    "stride": "frames from one window to the next",
    "crop": "what of the picture was seen, e.g. signer, centre or full",
}
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
_WORDS = {"true": True, "false": False, "none": None}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Make the subcommand known to slt-manifest."""
    stated = "; ".join(f"{name}: {what}" for name, what in REQUIRED.items())
    parser = commands.add_parser(
        "adopt-features",
        help="bring .npy and .pt features of other projects into a store",
        description="Copies the features of a manifest's rows, all {epoch} copies of them, into a store and writes a "
        "manifest of it. Run it again after a stop: what is stored already is not read again.",
    )
    parser.add_argument("input", type=Path, metavar="IN", help="manifest whose paths are .npy or .pt files")
    parser.add_argument("output", type=Path, metavar="OUT", help="the new manifest")
    parser.add_argument("--store", type=Path, required=True, metavar="NAME.store", help="made, or added to")
    help_fingerprint = f"what made the features. Needed ('unknown' is an answer): {stated}; others as you like"
    parser.add_argument(
        "--fingerprint", nargs="+", action="extend", required=True, metavar="NAME=VALUE", help=help_fingerprint
    )
    parser.add_argument("--media-root", type=Path, help="where relative paths start (default: the folder of IN)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="default: %(default)s")
    parser.add_argument("--workers", type=_workers, default=8, metavar="N", help="reading threads (%(default)s)")
    parser.add_argument("--allow-failed", action="store_true", help="write OUT without the rows that cannot be used")
    parser.set_defaults(run=partial(_run, parser))


def parse_fingerprint(words: Sequence[str]) -> dict[str, str | int | float | bool | None]:
    """name=value words as values of their types; checkpoint, variant and crop stay strings.

    Raises DataError for words without '=', names given twice, and names of REQUIRED that are missing.
    """
    values = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise DataError(f"--fingerprint {word}: write NAME=VALUE, such as stride=64 (IN and OUT come first)")
        if name in values:
            raise DataError(f"--fingerprint {word}: {name} is given twice")
        values[name] = value if name in ("checkpoint", "variant", "crop") else _typed(value)
    missing = [name for name in REQUIRED if name not in values]
    if missing:
        hint = did_you_mean(missing[0], values.keys() - REQUIRED.keys())
        needed = "; ".join(f"{name} ({REQUIRED[name]})" for name in missing)
        raise DataError(f"--fingerprint lacks {needed}{hint}; write NAME=unknown for what nobody knows")
    return values


def _typed(value: str) -> str | int | float | bool | None:
    if _NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    return _WORDS.get(value.lower(), value)


def _workers(value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        parser.error("OUT is the file IN: give another name")
    if not args.output.parent.is_dir():
        raise DataError(f"{args.output}: make the folder {args.output.parent} first")
    if args.media_root is not None and not args.media_root.is_dir():
        raise DataError(f"--media-root {args.media_root} is not a folder")
    values = parse_fingerprint(args.fingerprint)
    rows = read_manifest(args.input)

    import torch  # seconds, which the other commands need not wait

    from slt_plugin.data.adopt import adopt
    from slt_plugin.data.store import Fingerprint, StoreWriter

    torch.set_num_threads(1)  # one array is too small for several: they would wait for each other
    root = (args.media_root or args.input.parent).resolve()
    writer = StoreWriter(args.store, Fingerprint(values), dtype=args.dtype, origin=str(root))
    bar = partial(progress, unit="file")
    adoption = adopt(rows, root, writer, args.output.parent, workers=args.workers, progress=bar)
    for row_id, cause in adoption.failed.items():
        print(f"{args.input}: row {row_id!r}: {cause}")
    print(f"{args.store}: {adoption.stored} feature arrays stored now, {len(writer.done)} in all")
    if adoption.failed and not (args.allow_failed and adoption.rows):
        what = f"{len(adoption.failed)} of {len(rows)} rows failed ({listing(list(adoption.failed), 5)})"
        remedy = "correct them and run this again" + (", or add --allow-failed" if adoption.rows else "")
        print(f"{args.output}: not written: {what}; {remedy}")
        return 1
    write_manifest(args.output, adoption.rows)
    left_out = f", {len(adoption.failed)} rows left out" if adoption.failed else ""
    print(f"{args.output}: {len(adoption.rows)} rows{left_out}")
    return int(bool(adoption.failed))
