"""What the first bytes of a container tell and FFmpeg does not say: is the file whole, is it fragmented?"""

import struct
from pathlib import Path
from typing import BinaryIO

_ASF = b"\x30\x26\xb2\x75"
_ASF_PROPERTIES = b"\xa1\xdc\xab\x8c"
_FLV_SIZE = b"filesize\0"  # a number in the metadata
_MAX_BOXES = 100_000  # of the top level; a fragmented hour has some thousand


def cut_off(path: Path) -> str | None:
    """What shows that a file was cut off, else None: players read such a file to its end and stop without an error.

    Seen are MP4, MOV, Matroska, WebM, AVI and WMV files shorter than their headers say, and FLV, GIF and transport
    stream files that do not end as they should; a live WebM or an MPEG program stream does not tell.
    OSError where it cannot be read.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(4096)
        declared = 0
        if start[:4] == b"\x1a\x45\xdf\xa3":
            declared = _matroska_size(file)
        elif start[:4] == b"RIFF":
            declared = 8 + int.from_bytes(start[4:8], "little")
            declared = declared if declared < 2**32 else 0  # larger files (OpenDML) have further RIFF parts
        elif start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            needed = (b"mdat", b"moov", b"moof")  # what follows them may be junk
            ends = [offset + length for kind, offset, length in _boxes(file, size) if kind in needed]
            declared = max(ends, default=0)
        elif start[:4] == _ASF and start[30:34] == _ASF_PROPERTIES and not start[30 + 88] & 1:  # not a broadcast
            declared = int.from_bytes(start[30 + 40 : 30 + 48], "little")
        elif start[:4] == b"FLV\x01" and _FLV_SIZE in start[:-8]:
            at = start.index(_FLV_SIZE) + len(_FLV_SIZE)
            declared = struct.unpack(">d", start[at : at + 8])[0]
        if declared > size:
            return f"the file ends at byte {size} of {declared:.0f}"
        return "the file ends too early" if _ends_wrong(file, start, size) else None


def _ends_wrong(file: BinaryIO, start: bytes, size: int) -> bool:
    if start[:3] == b"GIF":
        file.seek(max(0, size - 64))
        return not file.read().rstrip(b"\0").endswith(b";")  # the trailer, GIF89a, 27
    if start[:4] == b"FLV\x01":  # each tag is followed by its length, 11 + that of its data
        file.seek(max(0, size - 4))
        length = int.from_bytes(file.read(4), "big")
        file.seek(max(0, size - 4 - length))
        return length != 0 and 11 + int.from_bytes(file.read(4)[1:], "big") != length
    if start[:1] == b"G" and start[188:189] == b"G":
        return size % 188 != 0
    if start[4:5] == b"G" and start[196:197] == b"G":  # .m2ts
        return size % 192 != 0
    return False


def is_fragmented(path: Path) -> bool:
    """Whether an MP4 file is written in fragments (moof boxes), whose frames its index does not list."""
    with open(path, "rb") as file:
        return any(kind == b"moof" for kind, _, _ in _boxes(file, path.stat().st_size))


def _boxes(file: BinaryIO, size: int):
    """(kind, offset, length) of the top-level boxes of an MP4 or MOV file (ISO/IEC 14496-12, 4.2)."""
    offset = 0
    for _ in range(_MAX_BOXES):
        if offset >= size:
            return
        file.seek(offset)
        header = file.read(16)
        if len(header) < 8:
            return
        length, kind, head = int.from_bytes(header[:4], "big"), header[4:8], 8
        if length == 1:  # 64-bit length follows
            length, head = int.from_bytes(header[8:16], "big"), 16
        elif length == 0:  # to the end of the file
            length = size - offset
        if length < head:
            return
        yield kind, offset, length
        offset += length


def _matroska_size(file: BinaryIO) -> int:
    """Where the Segment of a Matroska or WebM file ends; 0 where its size is not written (live recordings)."""
    file.seek(4)
    header, _ = _vint(file)
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    length, unknown = _vint(file)
    return 0 if unknown else file.tell() + length


def _vint(file: BinaryIO) -> tuple[int, bool]:
    """An EBML variable-length number (RFC 8794, 4), and whether it is the reserved 'unknown'."""
    first = int.from_bytes(file.read(1), "big")
    width = 9 - first.bit_length()
    if width > 8:
        return 0, True
    value = int.from_bytes(bytes([first & (0xFF >> width)]) + file.read(width - 1), "big")
    return value, value == (1 << 7 * width) - 1
