"""A command's standard output, where whoever reads it may stop early (``| head``)."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps

READER_GONE = 141  # what a shell shows for a program that SIGPIPE ended


def ends_with_its_reader(main: Callable[[Sequence[str] | None], int]) -> Callable[[Sequence[str] | None], int]:
    """The same ``main``, which ends quietly, with status READER_GONE, where nobody reads its output any more."""

    @wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            try:
                return main(argv)
            finally:
                sys.stdout.flush()  # here and not when Python ends, where it could not be caught
        except BrokenPipeError:
            # what is still in the buffer goes nowhere, instead of failing again when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return READER_GONE

    return run
