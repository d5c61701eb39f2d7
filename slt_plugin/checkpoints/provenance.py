"""Where weights come from: source, checksum, licence. It travels inside the checkpoints that we write.

A downloaded file has its provenance beside it, as ``<file>.provenance.json`` (``scripts/download_pretrained.py``).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.releases import release_of
from slt_plugin.common.files import atomic_open

SIDECAR_SUFFIX = ".provenance.json"
UNKNOWN = "unknown"
BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Provenance:
    """Origin of a set of weights.

    source: URL, or the path where no URL is known.
    sha256: of the source file.
    licence: ``unknown`` where nobody stated one.
    notes: what the import changed, and on what the above rests.
    project: whose checkpoint layout the source file had.
    """

    source: str
    sha256: str
    licence: str = UNKNOWN
    notes: tuple[str, ...] = field(default=())
    project: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are stored in a checkpoint."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: object, path: str | Path) -> "Provenance":
        """The inverse of ``to_dict``; ``path`` is named in the CheckpointError of anything else."""
        names = cls.__dataclass_fields__
        if not isinstance(values, Mapping) or not set(values) <= set(names):
            raise CheckpointError(f"{path} has a provenance that is none: expected {', '.join(names)}; got {values!r}")
        texts = {name: value for name, value in values.items() if name != "notes"}
        notes = values.get("notes", [])
        named = {"source", "sha256"} <= set(texts) and isinstance(notes, list)
        if not named or not all(isinstance(value, str) for value in (*texts.values(), *notes)):
            raise CheckpointError(f"{path} has a provenance without source and sha256, or with other values than text")
        return cls(**texts, notes=tuple(notes))

    def lines(self) -> list[str]:
        """For people: one fact a line."""
        facts = {"source": self.source, "sha256": self.sha256, "licence": self.licence, "layout": self.project}
        return [f"{name}: {value}" for name, value in facts.items() if value] + [f"note: {note}" for note in self.notes]


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sidecar_path(path: str | Path) -> Path:
    path = Path(path)
    return path.with_name(path.name + SIDECAR_SUFFIX)


def write_sidecar(path: str | Path, provenance: Provenance) -> None:
    """Writes the provenance of the file ``path`` beside it, atomically."""
    with atomic_open(sidecar_path(path)) as file:
        file.write((json.dumps(provenance.to_dict(), indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_sidecar(path: str | Path) -> Provenance | None:
    """The provenance beside the file ``path``; None where there is none.

    Raises:
        CheckpointError: the sidecar cannot be read.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        return None
    try:
        values = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{sidecar} cannot be read as JSON ({error}): remove it or download again") from error
    return Provenance.from_dict(values, sidecar)


def provenance_of(
    path: str | Path,
    *,
    project: str = "",
    source: str | None = None,
    licence: str | None = None,
    notes: Iterable[str] = (),
) -> Provenance:
    """The provenance of a foreign file: what the caller states, then its sidecar, then its name among known releases.

    Raises:
        CheckpointError: the file is not the one that its sidecar describes.
    """
    path, notes = Path(path), list(notes)
    digest = sha256_of(path)
    sidecar = read_sidecar(path)
    if sidecar is not None:
        if sidecar.sha256 != digest:
            raise CheckpointError(
                f"{path} is not the file that {sidecar_path(path).name} describes: its sha256 is {digest}, expected "
                f"{sidecar.sha256}. Download it again, or remove the .provenance.json if the change is yours"
            )
        source, licence = source or sidecar.source, licence or sidecar.licence
        notes = [*sidecar.notes, *notes]
    known = release_of(path.name)
    if licence in (None, UNKNOWN) and known is not None:
        licence = known[1].licence
        notes.append(f"licence assumed from the file name, release {known[0]}: {known[1].licence_source}")
    return Provenance(source or str(path), digest, licence or UNKNOWN, tuple(notes), project)
