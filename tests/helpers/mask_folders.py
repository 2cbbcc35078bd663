"""Tiny segmentation data sets, one for each layout and convention of docs/own_masks.md, made in a folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 10, 12
Colours = Mapping[int, tuple[int, int, int]]


def pattern(values: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return (HEIGHT, WIDTH) int32 that has each of the values, in columns."""
    columns = np.array(values)[np.arange(WIDTH) * len(values) // WIDTH]
    return np.roll(np.tile(columns, (HEIGHT, 1)), seed, axis=1).astype(np.int32)


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def save_mask(path: Path, values: np.ndarray, mode: str = 'L', colours: Colours | None = None) -> None:
    """Write a mask.

    Args:
        path: File.
        values: (H, W) integers.
        mode: ``1``, ``L``, ``I;16``, ``P`` or ``RGB``; ``GREY`` is RGB with three equal channels.
        colours: RGB of each value, for ``P`` and ``RGB``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == '1':
        image = Image.fromarray(values > 0)
    elif mode == 'I;16':
        image = Image.fromarray(values.astype(np.uint16))
    elif mode == 'GREY':
        image = Image.fromarray(np.repeat(values.astype(np.uint8)[..., None], 3, 2))
    elif mode in ('RGB', 'RGBA'):
        table = np.zeros((256, 3), np.uint8)
        for value, colour in (colours or {}).items():
            table[value] = colour
        image = Image.fromarray(table[values]).convert(mode)
    else:
        image = Image.fromarray(values.astype(np.uint8))
        if mode == 'P':
            image.putpalette([part for value in range(256) for part in (colours or {}).get(value, (value, 0, 0))])
    image.save(path)


class Layout(NamedTuple):
    """Where images and masks are: names with ``{split}`` and ``{i}``, and the names of the two splits."""

    image: str
    mask: str
    splits: tuple[str, ...] = ('train', 'val')


FLAT = Layout('images/{i}.jpg', 'masks/{i}.png', ('',))
SPLIT = Layout('images/{split}/{i}.jpg', 'masks/{split}/{i}.png')
ADE = Layout('images/{split}/{i}.jpg', 'annotations/{split}/{i}.png', ('training', 'validation'))


def write(
    root: Path,
    layout: Layout,
    values: Sequence[int],
    *,
    mode: str = 'L',
    colours: Colours | None = None,
    count: int = 3,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write a data set whose masks all have all of the values; return its folder."""
    for number, split in enumerate(layout.splits):
        for i in range(count):
            index = number * count + i
            save_image(root / layout.image.format(split=split, i=index), index)
            save_mask(root / layout.mask.format(split=split, i=index), pattern(values, index), mode, colours)
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding='utf-8')
    return root


Make = Callable[[Path], Path]
