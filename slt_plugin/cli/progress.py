"""Progress of a command on stderr: done, rate and time left."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

PLAIN_SECONDS = 20


def progress(items: Iterable, total: int, unit: str = "row") -> Iterator:
    """The items unchanged, with a bar in a terminal, else a plain line now and then."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, unit=unit, file=sys.stderr)
        return
    begin = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS:
            last = now
            rate = done / max(now - begin, 1e-9)
            left = (total - done) / rate
            print(f"{done} of {total} {unit}s, {rate:.1f}/s, about {left:.0f} s left", file=sys.stderr, flush=True)
