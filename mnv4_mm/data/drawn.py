"""A synthetic data set of coloured shapes on real images, of any size, reproducible by its seed.

Its validation scores are meaningful: a model that has learned the shapes finds them in images that it has not been
trained on. The small real data set ``data/mini/coco``, with 68 classes in 64 images, cannot show that. The drawn data
set is written in COCO's layout and in ADE20K's:

    annotations/instances_{train,val}.json   train/ val/   COCO boxes, polygons, category ids 1...6
    annotations/{training,validation}/       images/{training,validation}/
        masks: 1...6 are the shapes, 7 is the background around them, 0 (the rest) is unlabelled; classes.txt has
        their names
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image

SHAPES = ('disc', 'square', 'triangle', 'cross', 'ring', 'star')
# Mask value of the background around each shape. Labelling the whole background would make it 90 % of the pixels.
BACKGROUND = len(SHAPES) + 1
ADE_SPLITS = {'train': 'training', 'val': 'validation'}
Polygon = np.ndarray  # (P, 2), (x, y) in pixels


def draw_dataset(
    out: str | Path, backgrounds: Path, train: int = 256, val: int = 64, size: int = 320, seed: int = 0
) -> Path:
    """Draw a data set.

    The two splits use different backgrounds, unless ``backgrounds`` has only one image.

    Args:
        out: Folder to create. It must be empty or not exist.
        backgrounds: Folder of images ``*.jpg`` to draw on.
        train: Number of training images.
        val: Number of validation images.
        size: Width and height of the images in pixels, 64 to 4096.
        seed: At least 0; the same seed and arguments draw the same data set.

    Returns:
        ``out``.

    Raises:
        UserError: A number is out of range, there are no backgrounds, a background cannot be read, or ``out`` exists
            and is not an empty folder. No part of the data set is left in ``out`` then.
    """
    out = Path(out)
    if train < 1 or val < 1 or not 64 <= size <= 4096:
        raise UserError(
            f'need at least 1 image per split and a size of 64 to 4096 pixels, got {train}, {val} and {size}'
        )
    if seed < 0:
        raise UserError(f'--seed must not be negative, got {seed}')
    files = sorted(Path(backgrounds).glob('*.jpg'))
    if not files:
        raise UserError(f'no .jpg images in {backgrounds} to draw on')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'{out} exists and is not an empty folder: name a new one')
    held_out = max(1, len(files) // 4) if len(files) > 1 else 0
    split_files = {'train': files[held_out:], 'val': files[:held_out] or files}
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix='.draw-') as temporary:
            folder = Path(temporary)
            for number, (split, count) in enumerate((('train', train), ('val', val))):
                _draw_split(folder, split, count, split_files[split], size, np.random.default_rng([seed, number]))
            (folder / 'classes.txt').write_text('\n'.join((*SHAPES, 'background')) + '\n')
            for path in sorted(folder.iterdir()):
                path.rename(out / path.name)
    except BaseException:
        if is_new and not any(out.iterdir()):
            out.rmdir()
        raise
    return out


def _draw_split(
    out: Path, split: str, count: int, backgrounds: Sequence[Path], size: int, rng: np.random.Generator
) -> None:
    folders = [out / split, out / 'images' / ADE_SPLITS[split], out / 'annotations' / ADE_SPLITS[split]]
    for folder in folders:
        folder.mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for i in range(count):
        image = _read_background(backgrounds[int(rng.integers(len(backgrounds)))], size, rng)
        mask = np.zeros((size, size), np.uint8)
        name = f'{i:06}'
        occupied = np.zeros((size, size), bool)
        for _ in range(int(rng.integers(1, 6))):
            shape = int(rng.integers(len(SHAPES)))
            outlines = _random_outlines(shape, size, rng)
            filled = np.zeros((size, size), np.uint8)
            cv2.fillPoly(filled, [np.round(outline).astype(np.int32) for outline in outlines], 1)
            is_shape = filled > 0
            if (occupied & is_shape).any():
                continue  # shapes never overlap, so that every box shows its whole shape
            occupied |= is_shape
            image[is_shape] = _random_colour(image[is_shape].mean(axis=0), rng)
            mask[_surrounding_disc(outlines[0], size) & (mask == 0)] = BACKGROUND
            mask[is_shape] = shape + 1
            ys, xs = np.nonzero(is_shape)
            x, y, w, h = int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 1,
                    category_id=shape + 1,
                    bbox=[x, y, w, h],
                    area=int(is_shape.sum()),
                    iscrowd=0,
                    segmentation=[outlines[0].round(2).flatten().tolist()],
                )
            )
        images.append(dict(id=i + 1, file_name=f'{name}.jpg', width=size, height=size))
        jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        for folder in folders[:2]:
            (folder / f'{name}.jpg').write_bytes(jpeg)
        cv2.imwrite(str(folders[2] / f'{name}.png'), mask)
    content = dict(
        info=dict(description='drawn shapes'),
        images=images,
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(SHAPES, 1)],
    )
    (out / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _surrounding_disc(outline: Polygon, size: int) -> np.ndarray:
    """Return a mask, (size, size) bool, of a disc 1.25 times as wide as a shape."""
    (x, y), radius = cv2.minEnclosingCircle(outline.astype(np.float32))
    disc = np.zeros((size, size), np.uint8)
    return cv2.circle(disc, (round(x), round(y)), round(1.25 * radius), 1, cv2.FILLED) > 0


def _read_background(path: Path, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random square crop of at least half the image's short side, (size, size, 3) uint8 BGR."""
    image = read_image(path)
    side = int(rng.integers(max(1, min(image.shape[:2]) // 2), min(image.shape[:2]) + 1))
    y, x = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    return cv2.resize(image[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)


def _random_colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random colour, (3,) uint8 BGR, that differs visibly from the mean colour of the background."""
    while True:
        colour = rng.integers(0, 256, 3)
        if np.abs(colour - background).max() > 80:
            return colour.astype(np.uint8)


def _random_outlines(shape: int, size: int, rng: np.random.Generator) -> list[Polygon]:
    """Return the outline of a shape (and of the ring's hole) at a random size, angle and position inside the image."""
    radius = rng.uniform(0.08, 0.25) * size
    centre = rng.uniform(radius + 1, size - radius - 2, 2)
    angle = rng.uniform(0, 2 * np.pi)
    return [outline * radius @ _rotation(angle).T + centre for outline in _UNIT[SHAPES[shape]]()]


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _regular(corners: int, radius: float = 1.0) -> Polygon:
    angles = np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross() -> Polygon:
    arm = np.array([[1, -0.3], [1, 0.3], [0.3, 0.3]])
    return np.concatenate([arm @ _rotation(k * np.pi / 2).T for k in range(4)]) / np.hypot(1, 0.3)


def _star() -> Polygon:
    return _regular(10) * np.tile([[1.0], [0.4]], (5, 1))


_UNIT: dict[str, Callable[[], list[Polygon]]] = {
    'disc': lambda: [_regular(48)],
    'square': lambda: [_regular(4)],
    'triangle': lambda: [_regular(3)],
    'cross': lambda: [_cross()],
    'ring': lambda: [_regular(48), _regular(48, 0.55)],
    'star': lambda: [_star()],
}
