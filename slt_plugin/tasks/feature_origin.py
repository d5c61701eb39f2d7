"""One extraction for training, validation and decoding: features of another one look alike and give wrong numbers."""

import logging

from slt_plugin.data.errors import DataError
from slt_plugin.data.store import Fingerprint

logger = logging.getLogger(__name__)


class FeatureOrigin:
    """What made the features that a task has seen so far; it travels in the checkpoint.

    Args:
        what: what they are called in messages.
    """

    def __init__(self, what: str = "features"):
        self.what = what
        self.where: str | None = None  # nothing seen yet
        self.fingerprint: Fingerprint | None = None  # None: plain files, whose origin is not known

    def compare(self, where: str, fingerprint: Fingerprint | None) -> None:
        """Takes note of the first features and compares all later ones with them.

        Args:
            where: the manifest or checkpoint, for messages.
            fingerprint: of its store; None: plain files.

        Raises:
            DataError: two extractions that differ.
        """
        if self.where is None:
            self.where, self.fingerprint = where, fingerprint
        elif fingerprint is None or self.fingerprint is None:
            if fingerprint != self.fingerprint:
                logger.warning(
                    "%s and %s: the features of one come from a store, the other's from plain files, so whether they "
                    "were extracted alike is not known",
                    self.where,
                    where,
                )
        elif fingerprint != self.fingerprint:
            difference = self.fingerprint.difference(fingerprint, f"in {self.where}", f"in {where}")
            raise DataError(f"{where}: {self.what} made otherwise than those of {self.where}: {difference}")

    def state_dict(self) -> dict | None:
        """Plain values for a checkpoint; None where no features were read."""
        if self.where is None:
            return None
        return {"fingerprint": None if self.fingerprint is None else dict(self.fingerprint.values)}

    def load_state_dict(self, state: dict | None) -> None:
        """Compares with a checkpoint's features, or takes note of them. Raises as `compare`."""
        if state is not None:
            values = state["fingerprint"]
            self.compare("the checkpoint", None if values is None else Fingerprint(values))
