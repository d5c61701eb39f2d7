"""What made the features of a store: named values that are compared before features are mixed."""

import hashlib
import json
import math
from dataclasses import dataclass

from slt_plugin.data.errors import DataError

Value = str | int | float | bool | None


class StoreError(DataError):
    """A store of features that cannot be used as asked: the message names it and says what to do."""


class EntryError(StoreError):
    """Features of one clip that a store does not take; it takes the others."""


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Everything that decides the numbers: checkpoint, variant, fps, stride, crop, ...

    Two fingerprints are equal where `canonical` is: the order of the names makes no difference, and 25.0 is 25.
    Raises StoreError for names and values that JSON cannot hold without loss.
    """

    values: dict[str, Value]

    def __post_init__(self):
        if not self.values:
            raise StoreError("an empty fingerprint: name what made the features, e.g. checkpoint, fps, stride")
        for name, value in self.values.items():
            if not isinstance(name, str) or not name or name != name.strip():
                raise StoreError(f"fingerprint: {name!r} is not a name; give words such as 'stride'")
            if not isinstance(value, Value) or (isinstance(value, float) and not math.isfinite(value)):
                raise StoreError(f"fingerprint: {name}={value!r}; give a string, a finite number, true, false or none")
        object.__setattr__(self, "values", {name: _plain(self.values[name]) for name in sorted(self.values)})

    @property
    def canonical(self) -> str:
        """JSON with sorted names: what is stored, hashed and compared."""
        return json.dumps(self.values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """SHA-256 of `canonical`, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def difference(self, other: "Fingerprint", here: str = "in the store", there: str = "asked") -> str:
        """What differs, e.g. 'stride: 64 in the store, 32 asked; crop: not given in the store, box asked'."""
        parts = []
        for name in sorted(self.values.keys() | other.values.keys()):
            mine, others = self._shown(name), other._shown(name)
            if mine != others:
                parts.append(f"{name}: {mine} {here}, {others} {there}")
        return "; ".join(parts)

    def _shown(self, name: str) -> str:
        if name not in self.values:
            return "not given"
        value = self.values[name]
        ambiguous = isinstance(value, str) and _reads_as_other_type(value)
        return repr(value) if ambiguous else str(value)


def _plain(value: Value) -> Value:
    """Integral floats as int, so that fps 25.0 and 25 are one value."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _reads_as_other_type(text: str) -> bool:
    """Whether a string must be quoted in a message to be told from a number, a truth value or nothing."""
    if not text or text in ("True", "False", "None", "not given"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
