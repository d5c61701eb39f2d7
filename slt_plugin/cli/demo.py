"""``slt-demo``: a page on this machine that translates a video (or a pose file) with your checkpoints.

examples:
  slt-demo --checkpoint runs/how2sign/checkpoint_best.pt
  slt-demo --checkpoint runs/poses/checkpoint_best.pt runs/video/checkpoint_best.pt --port 0

Nothing leaves the machine: the page is for it alone, loads nothing from the network, and serves no file. Ctrl-C stops
it and deletes what was uploaded.
"""

import argparse
import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from slt_plugin.cli.demo_page import Address, import_gradio, serve
from slt_plugin.cli.demo_service import STEPS_PER_SECOND, DemoError, Limits, Service
from slt_plugin.cli.errors import EXPECTED_ERRORS, one_line
from slt_plugin.cli.translator import ModelOptions, Translator

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped by Ctrl-C or SIGTERM, 1 the page could not be opened, 2 wrong usage."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    threads = set(threading.enumerate())
    # a folder that is deleted on the way out, on SIGTERM too
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run(args)
    except EXPECTED_ERRORS as error:
        print(f"slt-demo: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("slt-demo: stopped", file=sys.stderr)
        _leave(set(threading.enumerate()) - threads)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _leave(threads: Collection[threading.Thread]) -> None:
    """Ends the process where the page's threads do not end: the interpreter would wait for a translation that nobody
    waits for any more, for minutes with a large model.
    """
    until = time.monotonic() + 1
    for thread in threads:
        if not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() and not thread.daemon for thread in threads):
        sys.stderr.flush()
        os._exit(0)


def _run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="slt-demo-") as temporary, _bound(args.host, args.port) as bound:
        folder = Path(temporary)
        for name in ("gradio", "files"):
            (folder / name).mkdir()
        import_gradio(folder / "gradio")  # if it is missing, that is said before any model is loaded
        translators = {name: _load(checkpoint, args) for name, checkpoint in _named(args.checkpoint).items()}
        service = Service(
            translators, Limits(args.max_upload_mb, args.max_seconds), folder / "gradio", folder / "files"
        )
        host, port = bound.getsockname()[:2]
        local = _is_local(host)
        if not local:
            print(
                f"slt-demo: WARNING: --host {args.host}: everybody who reaches this machine can use the page and sends "
                "videos to it unencrypted; there is no password",
                file=sys.stderr,
            )
        where = f"[{host}]" if ":" in host else host
        with service.sweeping():
            serve(
                service,
                folder / "gradio",
                Address(bound, LOCAL_NAMES if local else ()),
                lambda: print(f"slt-demo: http://{where}:{port}/ (Ctrl-C stops it)", flush=True),
            )


def _load(checkpoint: str, args: argparse.Namespace) -> Translator:
    print(f"slt-demo: loading {checkpoint}", file=sys.stderr)
    options = ModelOptions(checkpoint, cpu=args.cpu, fp16=args.fp16, bf16=args.bf16)
    translator = Translator(options)
    if translator.kind == "features" and args.encoder is not None:
        translator = Translator(ModelOptions(checkpoint, args.encoder, args.cpu, args.fp16, args.bf16))
    return translator


def _named(checkpoints: Sequence[str]) -> dict[str, str]:
    """Checkpoints by the shortest ends of their paths that tell them apart: with their folders, as all are "best".

    Raises:
        DemoError: one is given twice.
    """
    if len(set(checkpoints)) < len(checkpoints):
        raise DemoError(f"--checkpoint {' '.join(checkpoints)}: one is given twice")
    parts = [[Path(path).resolve().parts for path in checkpoint.split(":")] for checkpoint in checkpoints]
    for length in range(2, 1 + max(len(path) for paths in parts for path in paths)):
        names = [" + ".join("/".join(path[-length:]) for path in paths) for paths in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, checkpoints, strict=True))
    raise DemoError(f"--checkpoint {' '.join(checkpoints)}: one is given twice, by different names")


def _is_local(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _bound(host: str, port: int) -> socket.socket:
    """A socket at this address, taken before the models are loaded.

    Raises:
        DemoError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DemoError(f"--host {host}: {error.strerror or error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # two that are bound and do not listen yet would not see each other; connections wait until all is loaded
        bound.listen()
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise DemoError(
                f"port {port} of {host} is taken: give another --port (0: any that is free), or stop what uses it"
            ) from error
        raise DemoError(f"--host {host} --port {port}: {error.strerror}; give an address of this machine") from error
    return bound


def _positive(value: str) -> float:
    number = float(value)  # argparse words the ValueError
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number above 0")
    return number


def _port(value: str) -> int:
    if not value.isdecimal() or int(value) > 65535:
        raise argparse.ArgumentTypeError(f"{value!r} is not a port: a number from 0 to 65535")
    return int(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slt-demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, nargs="+", metavar="PATH",
        help="one or several to choose from on the page, all loaded at the start; each a .pt file, or an ensemble "
        "joined by ':'",
    )  # fmt: skip
    parser.add_argument(
        "--encoder", type=Path, metavar="PATH", help="for checkpoints that read features: the SignHiera they came from"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=_port, default=7860, help="default: %(default)s; 0: any that is free")
    parser.add_argument("--max-upload-mb", type=_positive, default=200.0, metavar="MB", help="default: %(default)g")
    parser.add_argument(
        "--max-seconds", type=_positive, default=60.0, metavar="S",
        help=f"signing at once (default: %(default)g); features, which tell no rate: {STEPS_PER_SECOND} steps for each",
    )  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true")
    precision.add_argument("--bf16", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
