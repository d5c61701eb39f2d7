"""Which errors the commands print in one line, without a traceback, and how."""

import re

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from slt_plugin.common.errors import SltError

EXPECTED_ERRORS = (SltError, HydraException, OmegaConfBaseException)

# torch puts the whole traceback of a loader worker into the message of the error that it raises again
_FROM_WORKER = re.compile(r"\ACaught (?P<name>\w+) in .+\.\nOriginal Traceback \(most recent call last\):\n")


def one_line(error: BaseException) -> str:
    """The message of an error that the user can mend, as one line.

    Of an error from a loader worker only its own message is kept, of OmegaConf's and Hydra's the cause without their
    internal names.
    """
    message = str(error)
    worker = _FROM_WORKER.match(message)
    if worker:
        # chained errors have a traceback each: the one that left the worker is the last
        message = re.split(rf"^(?:\w+\.)*{worker['name']}: ", message, flags=re.MULTILINE)[-1]
    lines = [line.strip() for line in message.splitlines()]
    if isinstance(error, OmegaConfBaseException):
        lines = [line for line in lines if not line.startswith(("full_key: ", "object_type=", "reference_type="))]
        if error.full_key and not any(error.full_key in line for line in lines):
            lines.insert(0, f"{error.full_key}:")
    message = ""
    for line in filter(None, lines):
        message += ("" if not message else " " if message.endswith((":", ".", ";")) else "; ") + line
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        message += f" ({str(error.__cause__).splitlines()[0]})"
    return message
