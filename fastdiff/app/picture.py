"""Pictures: small grey images laid out on one sheet with captions.

Images are tensors with values in [-1, 1], data units; -1 is paper and +1 is ink.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

GAP, MARGIN, FONT_SIZE, LINE = 6, 14, 13, 20
PAPER, INK, FAINT = 255, 40, 120
TILE, SMALL_TILE = 64, 32
MANY = 200
"""From this many images on, tiles are small and have no captions."""


def grid(images: Tensor, captions: Sequence[str], columns: int = 10) -> Image.Image:
    """All images on one sheet, row by row, each with its caption underneath.

    Args:
        images: ``[N, 1, H, W]``.
        captions: N texts of a few characters.
        columns: images in a row; more where there are very many.
    """
    count = len(images)
    many = count >= MANY
    size, line = (SMALL_TILE, 0) if many else (TILE, LINE)
    columns = max(columns, 10 * math.ceil(math.sqrt(count) / 10)) if many else max(1, min(columns, count))
    rows = math.ceil(count / columns)
    sheet = _sheet(columns * (size + GAP) - GAP, rows * (size + line + GAP) - GAP)
    pen = ImageDraw.Draw(sheet)
    for k, image in enumerate(images):
        left, top = MARGIN + k % columns * (size + GAP), MARGIN + k // columns * (size + line + GAP)
        sheet.paste(_tile(image, size), (left, top))
        if not many:
            pen.text((left + size / 2, top + size + 2), captions[k], FAINT, _font(), anchor="ma")
    return sheet


def strip(frames: Tensor, headings: Sequence[str], captions: Sequence[str], corner: str) -> Image.Image:
    """A table of images: a row for each sample, a column for each moment.

    Args:
        frames: ``[K, B, 1, H, W]``, K moments of B samples.
        headings: K texts above the columns.
        captions: B texts at the left of the rows.
        corner: what the headings are, at the upper left.
    """
    moments, samples = frames.shape[:2]
    font = _font()
    side = round(max(font.getlength(text) for text in (*captions, corner))) + 2 * GAP
    sheet = _sheet(side + moments * (TILE + GAP) - GAP, LINE + samples * (TILE + GAP) - GAP)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), corner, FAINT, font)
    for k, heading in enumerate(headings):
        middle = MARGIN + side + k * (TILE + GAP) + TILE / 2
        pen.text((middle, MARGIN), heading, FAINT, font, anchor="ma")
    for b, caption in enumerate(captions):
        top = MARGIN + LINE + b * (TILE + GAP)
        pen.text((MARGIN, top + TILE / 2), caption, INK, font, anchor="lm")
        for k in range(moments):
            sheet.paste(_tile(frames[k, b], TILE), (MARGIN + side + k * (TILE + GAP), top))
    return sheet


def encode_png(image: Image.Image, facts: Mapping[str, str]) -> bytes:
    """A PNG file that carries the facts as text chunks; the same bytes every time."""
    chunks = PngInfo()
    for name, fact in facts.items():
        chunks.add_itxt(name, fact)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks, optimize=True)
    return buffer.getvalue()


def _sheet(width: int, height: int) -> Image.Image:
    return Image.new("L", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)


def _tile(image: Tensor, size: int) -> Image.Image:
    """One image ``[1, H, W]`` enlarged smoothly to ``size`` pixels."""
    grey = ((1 - image[0].float()) * 127.5).nan_to_num(127.5).clamp(0, 255).round().byte()
    return Image.fromarray(grey.numpy()).resize((size, size), Image.Resampling.BICUBIC)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
