"""Which H.264 packets nothing refers to: they can be left out of decoding without changing any other frame.

FFmpeg's own switch for this (skip_frame) also hides errors of damaged packets that others do refer to.
"""

from collections.abc import Iterator

_REFERRED_TO = 0x61  # the header of a slice that others refer to: what is damaged is left to the decoder
_SLICES = range(1, 6)  # nal_unit_type of coded slices and their partitions


class ReferenceTest:
    """Reads nal_ref_idc (ITU-T H.264, 7.4.1) of packets of one stream.

    Args:
        extradata: of the stream; with an avcC record (ISO/IEC 14496-15, 5.3.3), NAL units have their length before
            them, else start codes (Annex B).
    """

    def __init__(self, extradata: bytes | None):
        lengths = extradata is not None and len(extradata) > 6 and extradata[0] == 1
        self._width = (extradata[4] & 3) + 1 if lengths else None

    def is_disposable(self, packet: bytes) -> bool:
        """Whether no other frame refers to the packet's; False where it cannot be told."""
        headers = self._by_start_codes(packet) if self._width is None else self._by_lengths(packet, self._width)
        slices = [header for header in headers if header & 0x1F in _SLICES]
        return bool(slices) and not any(header & 0x60 for header in slices)

    @staticmethod
    def _by_lengths(data: bytes, width: int) -> Iterator[int]:
        """The first byte of each NAL unit."""
        at = 0
        while at + width < len(data):
            end = at + width + int.from_bytes(data[at : at + width], "big")
            yield data[at + width] if end <= len(data) else _REFERRED_TO
            at = end

    @staticmethod
    def _by_start_codes(data: bytes) -> Iterator[int]:
        at = data.find(b"\0\0\1")
        while 0 <= at < len(data) - 3:
            yield data[at + 3]
            at = data.find(b"\0\0\1", at + 3)
