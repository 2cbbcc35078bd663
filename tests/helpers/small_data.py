"""Small images and files of data sets, for tests of readers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.data.findings import Rule
from mnv4_mm.data.form import DetectionData
from mnv4_mm.images import write_image


def write_images(root: Path, names: Iterable[str], size: tuple[int, int] = (32, 24)) -> None:
    """Write images of a size, (width, height)."""
    width, height = size
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / name, np.full((height, width, 3), 90, np.uint8))


def write_file(path: Path, content: Any, encoding: str = 'utf-8') -> None:
    """Write text, bytes, or an object as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))


def boxes(data: DetectionData) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Return class and box, ``(x, y, width, height)``, by image name."""
    images = (image for group in data.splits.values() for image in group)
    return {image.name: [(data.classes[box.label], box.xywh) for box in image.boxes] for image in images}


def findings(data: DetectionData, *rules: Rule) -> list[tuple[str, str, str]]:
    """Return kind, entry and problem of the findings of these rules, or of all."""
    selected = (finding for finding in data.findings if not rules or finding.rule in rules)
    return [(finding.kind, finding.entry, finding.problem) for finding in selected]
