"""What scoring depends on beside the texts, from the options of ``slt-score`` and ``slt-evaluate``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.data.manifest import COLUMNS, read_manifest
from slt_plugin.scoring.breakdown import LENGTH
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.reduced_bleu import SIZE, Blacklist
from slt_plugin.scoring.settings import Settings
from slt_plugin.scoring.truecase import Truecaser

GROUPABLE = (LENGTH, *(name for name in COLUMNS if name not in ("id", "path", "text", "box")))


@dataclass(frozen=True)
class ScoringOptions:
    """As given; None where they were not. ``blacklist_size`` None: reduced BLEU's own size."""

    lowercase: bool
    truecase: bool
    train_manifest: Path | None
    blacklist: Path | None
    blacklist_size: int | None
    bleurt: Path | None


def build_settings(options: ScoringOptions, metrics: Sequence[str], spelled: Callable[[str], str]) -> Settings:
    """Settings that have all that the metrics need.

    Args:
        spelled: an option's name -> how the command has it ("--train-manifest", "train_manifest").

    Raises:
        SltError: a file cannot be used or would be used for nothing, a metric lacks something, options contradict.
    """
    reduced = any(name.startswith("reduced_bleu") for name in metrics)
    if options.blacklist and not reduced:
        raise ScoringError(
            f"{spelled('blacklist')} has no effect: add reduced_bleu or reduced_bleu_kept to {spelled('metrics')}"
        )
    if options.bleurt and "bleurt" not in metrics:
        raise ScoringError(f"{spelled('bleurt')} has no effect: add bleurt to {spelled('metrics')}")
    built = reduced and not options.blacklist and options.train_manifest is not None
    if options.train_manifest and not (built or options.truecase):
        raise ScoringError(
            f"{spelled('train_manifest')} has no effect: it is for {spelled('truecase')}, and for reduced_bleu without "
            f"{spelled('blacklist')}"
        )
    if options.blacklist_size is not None and not built:
        raise ScoringError(
            f"{spelled('blacklist_size')} has no effect: it is for reduced_bleu with {spelled('train_manifest')}"
        )
    blacklist = truecaser = None
    if options.train_manifest:
        texts = [row.text for row in read_manifest(options.train_manifest, require_text=True)]
        size = SIZE if options.blacklist_size is None else options.blacklist_size
        blacklist = Blacklist.from_texts(texts, size) if built else None
        truecaser = Truecaser.from_texts(texts) if options.truecase else None
    if options.blacklist:
        blacklist = Blacklist.from_file(options.blacklist)
    settings = Settings(options.lowercase, blacklist, truecaser, options.bleurt)
    settings.check(metrics)
    return settings
