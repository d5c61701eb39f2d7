"""How far an extraction is, and where its time went."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Counts jobs (copies of videos) and clips (windows); a bar in a terminal, else a line now and then.

    Time runs from the first decoded video on: what comes before (starting the workers, decoding the first video) is
    named apart, as it says nothing about a long run.

    Args:
        total: jobs to do.
        interval: seconds between lines.
        unit: what a job is called.
        part: what the model takes of it.
    """

    def __init__(self, total: int, interval: float, *, unit: str = "row", part: str = "clip"):
        self.total, self.interval, self.unit, self.part = total, interval, unit, part
        self.jobs = self.clips = self.failed = 0
        self.waited = 0.0
        self._made = self._told = time.monotonic()
        self._begin: float | None = None
        terminal = sys.stderr.isatty()
        self._logging = ExitStack()
        self._bar = tqdm(total=total, unit=unit, file=sys.stderr, smoothing=0.05) if terminal and total else None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the model has to wait for."""
        begin = time.monotonic()
        yield
        if self._begin is not None:
            self.waited += time.monotonic() - begin

    def decoded(self) -> None:
        """A video is there."""
        if self._begin is None:
            self._begin = time.monotonic()

    def encoded(self, clips: int) -> None:
        """So many windows went through the model."""
        self.clips += clips
        self._tell()

    def finished(self, *, failed: bool) -> None:
        """A job is done."""
        self.jobs += 1
        self.failed += failed
        if self._bar is not None:
            self._bar.update()
        self._tell()

    def __enter__(self) -> "Progress":
        if self._bar is not None:  # log lines above the bar, not through it
            self._logging.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._logging.close()

    @property
    def seconds(self) -> float:
        """Since the first video was there."""
        return 0.0 if self._begin is None else time.monotonic() - self._begin

    @property
    def clip_rate(self) -> float:
        """Clips a second."""
        return self.clips / max(self.seconds, 1e-9)

    @property
    def waiting_share(self) -> float:
        """Of the time, in which the model had nothing to do."""
        return self.waited / max(self.seconds, 1e-9)

    def summary(self) -> str:
        """One line for the end."""
        start = 0.0 if self._begin is None else self._begin - self._made
        return (
            f"{self.jobs} {self.unit}s ({self.failed} failed), {self.clips} {self.part}s in {self.seconds:.1f} s after "
            f"{start:.1f} s to the first: {self.jobs / max(self.seconds, 1e-9):.2f} {self.unit}s/s, "
            f"{self.clip_rate:.2f} {self.part}s/s; the model waited for data {self.waiting_share:.0%} of the time"
        )

    def _tell(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.clip_rate:.1f} {self.part}s/s, {self.failed} failed", refresh=False)
            return
        now = time.monotonic()
        if now - self._told < self.interval or not self.jobs:
            return
        self._told = now
        rate = self.jobs / max(self.seconds, 1e-9)
        left = (self.total - self.jobs) / rate
        logger.info(
            "%d of %d %ss, %d failed, %.2f/s, %.2f %ss/s, waiting for data %.0f %%, about %s left",
            self.jobs, self.total, self.unit, self.failed, rate, self.clip_rate, self.part, 100 * self.waiting_share,
            duration(left),
        )  # fmt: skip


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3 h 20 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
