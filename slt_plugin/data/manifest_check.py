"""Open the media of a manifest's rows in worker processes."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.sources import inspect_media

CHUNK = 16  # rows a worker takes at once: reading one takes milliseconds, handing one over too

Job = tuple[Row, Path]


def media_problems(
    rows: Sequence[Row], root: Path, *, workers: int, progress: Callable[[Iterable, int], Iterable]
) -> Iterator[str]:
    """What is wrong with each row's media, in row order; every message names the row (see `inspect_media`).

    Args:
        workers: processes that open media; 0 = this process does, as for a handful of rows.
        progress: takes the results, one a row, and their number; yields them unchanged.

    Raises:
        DataError: a worker process was killed.
    """
    jobs = [(row, root) for row in rows]
    if workers == 0 or len(jobs) <= CHUNK:
        yield from filter(None, progress(map(_problem, jobs), len(jobs)))
        return
    # forkserver: a plain fork of a process that has loaded torch (threads) may hang
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    done = 0
    try:
        with ProcessPoolExecutor(min(workers, -(-len(jobs) // CHUNK)), mp_context=context) as pool:
            for problem in progress(pool.map(_problem, jobs, chunksize=CHUNK), len(jobs)):
                done += 1
                if problem is not None:
                    yield problem
    except BrokenProcessPool as error:
        raise DataError(
            f"a worker process was killed (out of memory, or a crash in a decoder), not before row {rows[done].id!r}; "
            "run it with --workers 0, which reads the rows one by one in one process"
        ) from error


def _problem(job: Job) -> str | None:
    row, root = job
    try:
        inspect_media(row, root)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"row {row.id!r}: {row.path}: {error}"
    return None
