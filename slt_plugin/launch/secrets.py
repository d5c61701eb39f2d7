"""Nothing that looks like a secret goes into a file of a job: a job inherits the environment it was submitted from."""

import re
from collections.abc import Iterable, Mapping

from slt_plugin.models.errors import OptionError

_NAME = r"(?:[A-Z0-9]+_)*(?:API_?KEY|KEY|TOKEN|SECRET|[A-Z0-9]*PASSWORD|[A-Z0-9]*PASSWD)[0-9]*"
# NAME=value as a shell or a container's --env writes it; $(cat file) and $NAME are no secret themselves
_ASSIGNED = re.compile(rf"(?<![A-Z0-9_])({_NAME})\s*[=:]\s*(?!\s)[\"']?(?![$`\"'])\S")
_OPTION = re.compile(
    r"(?i)(?<![a-z0-9])(api_?key|(?:hf|hub|wandb|openai|access|auth|api|github|gitlab)_?token|secret|passwo?r?d)"
    r"=(?!null|['\"]?[$`])\S"
)
# --token VALUE
_SWITCH = re.compile(r"(?i)(?<!\S)--?((?:[a-z]+-)*(?:token|password|secret|api-?key))(?:=|\s+)(?!['\"]?[$`-])\S")
# tokens of Hugging Face and GitHub; of Weights & Biases (not a commit in a path); user:password@host; HTTP headers
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"
    r"|(?<![\w/.-])[0-9a-f]{40}(?![\w/.-])|://[^/\s:@]+:[^/\s@$]+@|\b(?i:bearer)\s+(?![$`{])\S"
)
_VARIABLE = re.compile(rf"^{_NAME}$")
SHORTEST = 8  # a shorter value of a variable is found in texts by chance


def refuse_secrets(texts: Iterable[tuple[str, str]], environ: Mapping[str, str]) -> None:
    """Refuses what would write a password or key into a file that others may read.

    Args:
        texts: (where it stands, for the message; the text).
        environ: no value of a variable that is called ...KEY, ...TOKEN, ...SECRET or ...PASSWORD may be in a text.

    Raises:
        OptionError: its message does not repeat the secret.
    """
    values = {name: value for name, value in environ.items() if _VARIABLE.match(name) and len(value) >= SHORTEST}
    values = {name: value for name, value in values.items() if not value.startswith(("/", "~"))}  # SSH_KEY=/home/me/...
    for where, text in texts:
        named = _ASSIGNED.search(text) or _OPTION.search(text) or _SWITCH.search(text)
        inside = next((name for name, value in values.items() if value in text), None)
        if named is None and inside is None and not _SHAPES.search(text):
            continue
        what = named[1] if named else f"the value of ${inside}" if inside else "what looks like a key or a password"
        raise OptionError(
            f"{where} holds {what}: it would be written into the job's files. Leave it out: a job inherits the "
            f"environment that it is submitted from (export {named[1] if named else inside or 'NAME'}=... before)"
        )
