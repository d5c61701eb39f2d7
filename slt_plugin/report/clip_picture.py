"""Draws a clip: a row of pictures of each kind, time from left to right."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from slt_plugin.common.files import atomic_open
from slt_plugin.models.reconstruction import PICTURE_ROWS
from slt_plugin.modules.reconstruction import evenly_spaced
from slt_plugin.report.errors import ReportError

GAP = 4  # pixels between pictures
LINE = 18  # pixels of a line of text
FONT_SIZE = 13
SMALLEST = 96  # side of a picture in pixels: smaller ones are enlarged by a whole number
MARGIN = 110  # pixels on the left for the names of the rows


def draw_clip(rows: Tensor, seconds: Sequence[float], title: str, steps: int) -> Image.Image:
    """A picture with a title line, a line of times and a row for each kind.

    Args:
        rows: (kinds, time steps, 3, S, S) uint8, kinds as `PICTURE_ROWS`.
        seconds: the time of each step.
        steps: columns, at most; evenly spaced time steps.
    """
    columns = evenly_spaced(rows.shape[1], steps)
    size = rows.shape[-1]
    side = size * math.ceil(SMALLEST / size)
    font = ImageFont.load_default(FONT_SIZE)
    top = 2 * LINE + GAP
    width = max(MARGIN + len(columns) * (side + GAP), round(font.getlength(title)) + 2 * GAP)
    picture = Image.new("RGB", (width, top + len(rows) * (side + GAP)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, 0), title, "black", font)
    for x, step in enumerate(columns):
        left = MARGIN + x * (side + GAP)
        draw.text((left, LINE), f"{seconds[step]:.2f} s", "black", font)
        for y in range(len(rows)):
            tile = Image.fromarray(rows[y, step].permute(1, 2, 0).contiguous().numpy())
            if side != size:
                tile = tile.resize((side, side), Image.Resampling.NEAREST)
            picture.paste(tile, (left, top + y * (side + GAP)))
    for y, name in enumerate(PICTURE_ROWS):
        draw.text((GAP, top + y * (side + GAP) + (side - LINE) // 2), name, "black", font)
    return picture


def write_png(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    try:
        with atomic_open(path) as file:
            picture.save(file, format="PNG")
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror or error}") from error
