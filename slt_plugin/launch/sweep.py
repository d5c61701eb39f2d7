"""A sweep as elements of one job array: which overrides each has, and which folder."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import listing
from slt_plugin.launch.errors import LaunchError
from slt_plugin.models.errors import OptionError

FILE = "sweep.json"
SAVE_DIR = "checkpoint.save_dir"
LONGEST = 100  # characters of a folder's name


@dataclass(frozen=True)
class Element:
    """One training of a sweep.

    Attributes:
        overrides: those that differ from element to element, ``option=value``.
        folder: name of its folder in the sweep's.
    """

    index: int
    overrides: tuple[str, ...]
    folder: str


def expand(overrides: Sequence[Override]) -> list[Element]:
    """The elements in Hydra's order: the last option varies fastest.

    Raises:
        OptionError: nothing varies, or the folder does, or an option is swept in a way that needs results.
    """
    swept = [override for override in overrides if override.is_sweep_override()]
    if not swept:
        raise OptionError("-m without several values: write e.g. common.seed=1,2,3, or leave -m out")
    for override in swept:
        if not override.is_discrete_sweep():
            raise OptionError(f"{override.input_line}: give the values (a,b,c, choice(a,b) or range(1,4))")
        if override.key_or_group == SAVE_DIR:
            raise OptionError(f"{override.input_line}: each element gets a folder of its own in {SAVE_DIR}; give one")
    keys = [override.key_or_group for override in swept]
    names = {key: key.rpartition(".")[2] for key in keys}
    if len(set(names.values())) < len(names):
        names = {key: key for key in keys}
    elements = []
    for index, words in enumerate(BasicSweeper.split_arguments(swept, None)[0]):
        parts = [str(index)]
        for word in words:
            key, _, value = word.lstrip("+").partition("=")
            parts.append(f"{names.get(key, key)}_{_safe(value)}")
        elements.append(Element(index, tuple(words), "_".join(parts)[:LONGEST].rstrip("._-")))
    return elements


def _safe(value: str) -> str:
    """The value as it may stand in the name of a folder, and in a word of Hydra without quotes."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-.") or "empty"


def element_words(words: Sequence[str], element: Element, save_dir: str) -> list[str]:
    """The command line of one element.

    Args:
        words: of the sweep, without those that vary, without -m and without ``checkpoint.save_dir``.
        save_dir: the sweep's.
    """
    folder = str(Path(save_dir) / element.folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*words, *element.overrides, f"{SAVE_DIR}='{folder}'"]


def check_sweep_folder(save_dir: Path, elements: Sequence[Element], words: Sequence[str]) -> None:
    """Raises LaunchError where the folder holds another sweep: its runs would be continued with other options.

    Args:
        words: of the command line, those that do not vary; their order does not count.
    """
    path = save_dir / FILE
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [tuple(element["overrides"]) for element in content["elements"]]
        before = [str(word) for word in content["words"]]
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchError(f"{path} cannot be read ({error}): remove it, or give another {SAVE_DIR}") from error
    if found != [element.overrides for element in elements]:
        raise LaunchError(f"{path} is of another sweep, with {len(found)} elements: give another {SAVE_DIR}")
    if sorted(before) != sorted(words):
        said = [
            f"{verb} {listing([word for word in of if word not in other])}"
            for verb, of, other in (("had", before, words), ("did not have", words, before))
            if set(of) - set(other)
        ]
        raise LaunchError(
            f"{path}: this sweep {' and '.join(said) or 'had other words'}, and its elements would go on with other "
            f"options than they began with. Give the same words, or another {SAVE_DIR}; or remove {path} first"
        )


def write_sweep(save_dir: Path, command: str, elements: Sequence[Element], words: Sequence[str], job: str) -> Path:
    """Writes sweep.json, which `slt-report sweep` reads: the array's job and of each element overrides and folder.

    Args:
        words: see `check_sweep_folder`.
    """
    listed = [{"index": e.index, "overrides": list(e.overrides), "folder": e.folder} for e in elements]
    content = {"command": command, "job": job, "words": list(words), "elements": listed}
    with atomic_open(save_dir / FILE) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return save_dir / FILE
