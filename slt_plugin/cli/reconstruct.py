"""``slt-report reconstruct``: pictures of masked input, reconstruction and original."""

import argparse
from pathlib import Path

DESCRIPTION = """\
Writes one PNG for each row: what the autoencoder saw of a clip, what it made of it, and the clip, from left to right in
time. Only the first frame of each time step is predicted, and shown. Of a model trained with norm_pix_loss brightness
and contrast of a predicted patch are those of the original, which the model does not predict.

The pictures show the signers: faces are personal data. Share them as you may share the videos, and no further."""


def add_reconstruct(commands) -> None:
    """Declares the subcommand's arguments."""
    parser = commands.add_parser(
        "reconstruct",
        help="pictures of what a masked autoencoder makes of clips",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of slt-pretrain (sign_mae, sign_clip)")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="of videos, .tsv")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures, ID.png")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", metavar="ID,ID", help="rows to draw, joined by commas (--ids=-a,b where - begins)")
    which.add_argument("--first", type=int, default=4, metavar="N", help="the first N rows (default %(default)s)")
    parser.add_argument(
        "--media-root", type=Path, metavar="DIR", help="folder that manifest paths start from; default: the manifest's"
    )
    parser.add_argument(
        "--mask-ratio", type=float, metavar="R", help="hidden share of a clip; default: that of the training"
    )
    parser.add_argument(
        "--steps", type=int, default=8, metavar="K", help="columns: evenly spaced time steps (default %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help="of clips and masks; default: the training's, and then a row has those of its validation, unless "
        "task.min_duration or max_duration left out rows before it",
    )
    parser.add_argument("--device", metavar="D", help="cuda, cuda:1, cpu; default: cuda where there is one")
    parser.set_defaults(run=_reconstruct)


def _reconstruct(args: argparse.Namespace) -> None:
    from slt_plugin.extraction.store_options import choose_device
    from slt_plugin.report.errors import ReportError
    from slt_plugin.report.reconstruction import choose_rows, read_pretrained, write_reconstructions

    ids = None if args.ids is None else [name.strip() for name in args.ids.split(",")]
    media_root = args.manifest.parent if args.media_root is None else args.media_root
    if not media_root.is_dir():
        raise ReportError(f"--media-root {media_root} is no folder")
    device = choose_device(args.device)
    rows = choose_rows(args.manifest, ids=ids, first=args.first)
    paths = write_reconstructions(
        read_pretrained(args.checkpoint),
        rows,
        media_root,
        args.out,
        mask_ratio=args.mask_ratio,
        steps=args.steps,
        seed=args.seed,
        device=device,
    )
    for path in paths:
        print(path, flush=True)
