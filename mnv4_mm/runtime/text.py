r"""Text on images. OpenCV draws ASCII, as its fonts have nothing else; Pillow, if installed, draws other text.

A text is drawn in the one font that has most of its characters. Characters that this font lacks are drawn as their code
points (``\u732b``), which keep two names distinguishable, unlike question marks. Without Pillow, accents are removed
first.
"""

import functools
import importlib.util
import math
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX
EM = 29  # pixels per em of a Pillow font whose capitals are as high as OpenCV's at scale 1
# Fonts of Linux, macOS and Windows. Pillow finds those that are installed. The wide CJK fonts come last.
FONTS = (
    'DejaVuSans.ttf', 'NotoSans-Regular.ttf', 'Arial Unicode.ttf', 'arial.ttf',
    'NotoSansCJK-Regular.ttc', 'wqy-zenhei.ttc', 'PingFang.ttc', 'msyh.ttc',
)  # fmt: skip
NO_CHARACTER = '\uffff'  # every font draws it as its glyph for missing characters


def text_size(text: str, scale: float, thickness: int) -> tuple[int, int, int]:
    """Return the width, the height above the baseline and the space to leave below it, in pixels.

    Args:
        text: One line.
        scale: Size, as in ``cv2.putText``.
        thickness: Thickness of OpenCV's lines in pixels.
    """
    text, font = _fit(text, scale)
    (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
    if font is not None:
        _, top, right, bottom = font.getbbox(text, anchor='ls')
        width, height, below = math.ceil(right), math.ceil(-top), max(below, 2 * math.ceil(bottom))
    return width, height, below


def draw_text(
    image: np.ndarray, text: str, left: int, baseline: int, scale: float, colour: tuple[int, int, int], thickness: int
) -> None:
    """Draw a line of text in place.

    Args:
        image: (H, W, 3) uint8 BGR.
        text: One line.
        left: Left edge in pixels.
        baseline: Vertical position of the baseline in pixels, from the top of the image.
        scale: Size, as in ``cv2.putText``.
        colour: BGR.
        thickness: Thickness of OpenCV's lines in pixels.
    """
    text, font = _fit(text, scale)
    if font is None:
        cv2.putText(image, text, (left, baseline), FONT, scale, colour, thickness, cv2.LINE_AA)
        return
    from PIL import Image, ImageDraw

    x1, y1, x2, y2 = (math.floor(side) for side in font.getbbox(text, anchor='ls'))
    mask = Image.new('L', (x2 - x1 + 1, y2 - y1 + 1))
    ImageDraw.Draw(mask).text((-x1, -y1), text, 255, font, anchor='ls')
    # Only the part of the text inside the image is drawn.
    x, y = left + x1, baseline + y1
    part = image[max(0, y) : max(0, y + mask.height), max(0, x) : max(0, x + mask.width)]
    opacity = np.asarray(mask, np.float32)[max(0, -y) :, max(0, -x) :, None][: len(part), : part.shape[1]] / 255
    ink = np.array(colour, np.float32)
    part[:] = np.rint(part + (ink - part) * opacity)


def _fit(text: str, scale: float) -> tuple[str, Any]:
    """Return the text as it can be drawn, and the Pillow font to draw it with; None for OpenCV's font."""
    text = ''.join(character if character.isprintable() else _escaped(character) for character in text)
    if text.isascii():
        return text, None
    size = max(1, round(EM * scale))
    fonts = _fonts(size)
    if not fonts:
        plain = unicodedata.normalize('NFKD', text)
        plain = ''.join(character for character in plain if not unicodedata.combining(character))
        return _escaped(plain), None
    # The font that has the most characters of the text; the first one if several do.
    font = max(fonts, key=lambda font: sum(_has(font, character) for character in text))
    return ''.join(character if _has(font, character) else _escaped(character) for character in text), font


def _escaped(text: str) -> str:
    r"""Return a text with characters other than printable ASCII as escapes, such as ``\n`` and ``\u732b``."""
    return ''.join(
        character if ' ' <= character <= '~' else character.encode('unicode_escape').decode() for character in text
    )


@functools.lru_cache(maxsize=16)
def _fonts(size: int) -> tuple[Any, ...]:
    """Load the installed fonts at a size in pixels; none without Pillow or its font engine."""
    try:
        from PIL import ImageFont

        return (*(ImageFont.truetype(path, size) for path in _font_files()), ImageFont.load_default(size))
    except ImportError:
        return ()


@functools.cache
def _font_files() -> tuple[str, ...]:
    from PIL import ImageFont

    # matplotlib, which training needs, ships DejaVu Sans. Importing it would take a second, so only its path is used.
    spec = importlib.util.find_spec('matplotlib')
    package = Path(spec.origin).parent if spec and spec.origin else Path()
    files = []
    for name in (str(package / 'mpl-data/fonts/ttf/DejaVuSans.ttf'), *FONTS):
        try:
            files.append(str(ImageFont.truetype(name).path))
        except OSError:  # not installed
            continue
    return tuple(files)


@functools.lru_cache(maxsize=4096)
def _has(font: Any, character: str) -> bool:
    return character.isspace() or _glyph(font, character) != _glyph(font, NO_CHARACTER)


def _glyph(font: Any, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
