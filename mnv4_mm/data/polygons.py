"""Compare the boxes of a COCO JSON file with its polygons, from which only missing boxes are made otherwise."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.data.findings import Finding
from mnv4_mm.data.formats.geometry import are_numbers, box_around_polygons, rotation

MIN_POLYGONS = 5  # fewest boxes with polygons that are compared
MAX_ANNOTATIONS, MAX_BYTES = 1000, 4 * 2**20  # of a file, which are parsed in less than a tenth of a second
# A box contradicts its polygon if its IoU with the box around the polygon is below MIN_IOU, and an edge is more than
# MIN_PIXELS away: the IoU of small boxes is low if tools count pixels differently.
MIN_IOU, MIN_PIXELS = 0.5, 2
START = re.compile(rb'"annotations"\s*:\s*\[')
BETWEEN = re.compile(r'[\s,]*')


def check_polygons(path: Path) -> Iterator[Finding]:
    """Yield a finding if more than half of the boxes of a COCO JSON file contradict their polygons.

    The first ``MAX_ANNOTATIONS`` of the file are compared. Rotated boxes, masks in run lengths, and files in UTF-16 are
    ignored.

    Args:
        path: The file. Entries that are not valid are ignored.
    """
    found = list(_with_polygons(path))
    if len(found) < MIN_POLYGONS:
        return
    table = np.array([[box, around] for _, box, around in found])  # (boxes, 2, 4)
    start, size = table[..., :2], table[..., 2:]
    end = start + size
    common = (end.min(1) - start.max(1)).clip(0).prod(1)
    is_other = common < MIN_IOU * (size.prod(2).sum(1) - common)
    is_far = (np.abs(np.diff(np.concatenate([start, end], 2), axis=1)) > MIN_PIXELS).any((1, 2))
    differs = is_other & is_far
    if 2 * differs.sum() > len(found):
        entry, box, around = found[differs.argmax()]
        shown, outline = (f'[{", ".join(f"{value:g}" for value in values)}]' for values in (box, around))
        problem = (
            f'{differs.sum()} of {len(found)} boxes are not around their polygons, such as {shown}, while the box '
            f'around its polygon is {outline}'
        )
        yield Finding('boxes-unlike-polygons', path, problem, f'annotation {entry["id"]}' if 'id' in entry else '')


def _with_polygons(path: Path) -> Iterator[tuple[dict[str, Any], list[float], list[float]]]:
    """Yield annotations that have a box and polygons, the box and the box around the polygons."""
    for entry in islice(_annotations(path), MAX_ANNOTATIONS):
        if not isinstance(entry, dict):
            continue
        attributes = entry.get('attributes')
        if isinstance(attributes, dict) and rotation(attributes.get('rotation')):
            continue
        box, around = entry.get('bbox'), box_around_polygons(entry.get('segmentation'))
        if around and are_numbers(box) and len(box) == 4 and all(side > 0 for side in (*box[2:], *around[2:])):
            yield entry, box, around


def _annotations(path: Path) -> Iterator[Any]:
    """Yield the annotations in the first ``MAX_BYTES`` of their list. What is no JSON ends them."""
    with suppress(OSError, ValueError, RecursionError), path.open('rb') as file:
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            match = START.search(content)
            text = content[match.end() : match.end() + MAX_BYTES].decode(errors='ignore') if match else ''
        if '"segmentation"' not in text:
            return
        decoder, position = json.JSONDecoder(), 0
        while True:  # until no value follows, which raises a ValueError
            gap = BETWEEN.match(text, position)
            entry, position = decoder.raw_decode(text, gap.end() if gap else position)
            yield entry
