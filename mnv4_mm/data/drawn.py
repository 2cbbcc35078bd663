"""A data set drawn by program: coloured shapes on real pictures, any number of them, seeded.

Its held-out scores mean something (a net that has learned shapes finds them on pictures it has not seen), which the
68 classes of the 64 small real pictures cannot give. Written in COCO's layout and in ADE20K's:

    annotations/instances_{train,val}.json   train/ val/   COCO boxes, polygons, category ids 1...6
    annotations/{training,validation}/       images/{training,validation}/
        masks: 1...6 the shapes, 7 the background round them, 0 the rest, unlabelled; classes.txt names them
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mnv4_mm.errors import UserError

SHAPES = ('disc', 'square', 'triangle', 'cross', 'ring', 'star')
BACKGROUND = len(SHAPES) + 1  # of the masks, round each shape: were all of it labelled, it would be nine pixels of ten
SIDES = {'train': 'training', 'val': 'validation'}
Polygon = np.ndarray  # (points, 2) pixels, x then y


def draw_dataset(
    out: str | Path, backgrounds: Path, train: int = 256, val: int = 64, size: int = 320, seed: int = 0
) -> Path:
    """Draws a data set.

    The backgrounds of the two splits are disjoint where ``backgrounds`` has more than one picture.

    Args:
        out: Folder to make; must not exist or be empty.
        backgrounds: Folder with JPEG pictures to draw on.
        train: Number of training pictures.
        val: Number of validation pictures.
        size: Width and height of a picture in pixels.
        seed: The same seed draws the same data set.

    Returns:
        ``out``.

    Raises:
        UserError: bad numbers, no backgrounds, or ``out`` is in use.
    """
    out = Path(out)
    if train < 1 or val < 1 or not 64 <= size <= 4096:
        raise UserError(
            f'need at least 1 picture a split and a size of 64 to 4096 pixels, got {train}, {val} and {size}'
        )
    pictures = sorted(Path(backgrounds).glob('*.jpg'))
    if not pictures:
        raise UserError(f'no .jpg pictures in {backgrounds} to draw on')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'{out} exists and is not an empty folder: name a new one')
    held_out = max(1, len(pictures) // 4) if len(pictures) > 1 else 0
    chosen = {'train': pictures[held_out:], 'val': pictures[:held_out] or pictures}
    for number, (split, count) in enumerate((('train', train), ('val', val))):
        _draw_split(out, split, count, chosen[split], size, np.random.default_rng([seed, number]))
    (out / 'classes.txt').write_text('\n'.join((*SHAPES, 'background')) + '\n')
    return out


def _draw_split(
    out: Path, split: str, count: int, pictures: Sequence[Path], size: int, rng: np.random.Generator
) -> None:
    folders = [out / split, out / 'images' / SIDES[split], out / 'annotations' / SIDES[split]]
    for folder in folders:
        folder.mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for i in range(count):
        picture = _background(pictures[int(rng.integers(len(pictures)))], size, rng)
        mask = np.zeros((size, size), np.uint8)
        name = f'{i:06}'
        taken = np.zeros((size, size), bool)
        for _ in range(int(rng.integers(1, 6))):
            shape = int(rng.integers(len(SHAPES)))
            outlines = _outlines(shape, size, rng)
            here = np.zeros((size, size), np.uint8)
            cv2.fillPoly(here, [np.round(outline).astype(np.int32) for outline in outlines], 1)
            if (taken & (here > 0)).any():
                continue  # shapes never hide each other, so every box is whole
            taken |= here > 0
            colour = _colour(picture[here > 0].mean(axis=0), rng)
            picture[here > 0] = colour
            mask[(_around(outlines[0], size) > 0) & (mask == 0)] = BACKGROUND
            mask[here > 0] = shape + 1
            ys, xs = np.nonzero(here)
            x, y, w, h = int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 1,
                    category_id=shape + 1,
                    bbox=[x, y, w, h],
                    area=int(here.sum()),
                    iscrowd=0,
                    segmentation=[outlines[0].round(2).flatten().tolist()],
                )
            )
        images.append(dict(id=i + 1, file_name=f'{name}.jpg', width=size, height=size))
        jpeg = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
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


def _around(outline: Polygon, size: int) -> np.ndarray:
    """1 in the disc round a shape that is 1.25 times as wide, (size, size) uint8."""
    (x, y), radius = cv2.minEnclosingCircle(outline.astype(np.float32))
    disc = np.zeros((size, size), np.uint8)
    return cv2.circle(disc, (round(x), round(y)), round(1.25 * radius), 1, cv2.FILLED)


def _background(path: Path, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square crop of at least half the short side, (size, size, 3) uint8 BGR."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise UserError(f'{path} is not a readable picture')
    side = int(rng.integers(min(picture.shape[:2]) // 2, min(picture.shape[:2]) + 1))
    y, x = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
    return cv2.resize(picture[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)


def _colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour that differs visibly from the mean colour below the shape."""
    while True:
        colour = rng.integers(0, 256, 3)
        if np.abs(colour - background).max() > 80:
            return colour.astype(np.uint8)


def _outlines(shape: int, size: int, rng: np.random.Generator) -> list[Polygon]:
    """Outer outline of a shape (and, for the ring, its hole), turned and placed at random inside the picture."""
    radius = rng.uniform(0.08, 0.25) * size
    centre = rng.uniform(radius + 1, size - radius - 2, 2)
    turn = rng.uniform(0, 2 * np.pi)
    return [outline * radius @ _rotation(turn).T + centre for outline in _UNIT[SHAPES[shape]]()]


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
