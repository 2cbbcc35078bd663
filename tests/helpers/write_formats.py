"""Write a detection data set in each of the formats that are read, as the tools that define them do.

For tests: what is written must be read back as it was.
"""

import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from mnv4_mm.data.form import Box, DetectionData, LabelledImage
from mnv4_mm.images import image_size


def write_coco(data: DetectionData, out: Path) -> None:
    """Write ``annotations/instances_<split>.json`` and ``<split>/``."""
    categories = [dict(id=number, name=name) for number, name in zip(data.category_ids, data.classes, strict=True)]
    number = 0
    for split, group in data.splits.items():
        images, annotations = [], []
        for i, image in enumerate(group, 1):
            width, height = _size(data, image)
            images.append(dict(id=i, file_name=_link(data, image, out / split), width=width, height=height))
            for box in image.boxes:
                number += 1
                area = box.xywh[2] * box.xywh[3] if box.area is None else box.area
                annotations.append(
                    dict(
                        id=number,
                        image_id=i,
                        category_id=data.category_ids[box.label],
                        bbox=list(box.xywh),
                        area=area,
                        iscrowd=int(box.is_crowd),
                    )
                )
        content = dict(images=images, annotations=annotations, categories=categories)
        _write(out / f'annotations/instances_{split}.json', json.dumps(content))


def write_yolo(data: DetectionData, out: Path, digits: int = 6) -> None:
    """Write ``data.yaml``, ``images/<split>/`` and ``labels/<split>/``. Crowds are written as any box."""
    description = {split: f'images/{split}' for split in data.splits} | dict(names=list(data.classes))
    _write(out / 'data.yaml', yaml.safe_dump(description, allow_unicode=True))
    for split, group in data.splits.items():
        for image in group:
            width, height = _size(data, image)
            name = _link(data, image, out / 'images' / split)
            rows = []
            for box in image.boxes:
                x, y, w, h = box.xywh
                shares = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
                rows.append(' '.join([str(box.label), *(f'{share:.{digits}f}' for share in shares)]))
            _write(out / 'labels' / split / f'{Path(name).stem}.txt', '\n'.join(rows))


def write_cvat(data: DetectionData, out: Path) -> None:
    """Write ``annotations.xml`` ("CVAT for images 1.1") and ``images/<split>/``."""
    root = ElementTree.Element('annotations')
    ElementTree.SubElement(root, 'version').text = '1.1'
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, 'meta'), 'task'), 'labels')
    for name in data.classes:
        ElementTree.SubElement(ElementTree.SubElement(labels, 'label'), 'name').text = name
    number = 0
    for split, group in data.splits.items():
        for image in group:
            width, height = _size(data, image)
            name = _link(data, image, out / 'images' / split)
            attributes = dict(id=str(number), name=name, subset=split, width=str(width), height=str(height))
            number += 1
            element = ElementTree.SubElement(root, 'image', attributes)
            for box in image.boxes:
                edges = zip(('xtl', 'ytl', 'xbr', 'ybr'), _edges(box), strict=True)
                shape = ElementTree.SubElement(
                    element, 'box', dict(label=data.classes[box.label], occluded='0', z_order='0')
                )
                shape.attrib.update({key: f'{value:.2f}' for key, value in edges})
                if box.is_crowd:
                    ElementTree.SubElement(shape, 'attribute', dict(name='is_crowd')).text = 'true'
    _write_xml(out / 'annotations.xml', root)


def write_labelme(data: DetectionData, out: Path) -> None:
    """Write ``<split>/`` with images and a JSON file for each. Crowds are written as any box."""
    for split, group in data.splits.items():
        for image in group:
            width, height = _size(data, image)
            name = _link(data, image, out / split)
            shapes: list[dict[str, Any]] = []
            for box in image.boxes:
                x1, y1, x2, y2 = map(float, _edges(box))
                shapes.append(
                    dict(
                        label=data.classes[box.label],
                        points=[[x1, y1], [x2, y2]],
                        group_id=None,
                        shape_type='rectangle',
                        flags={},
                    )
                )
            content: dict[str, Any] = dict(
                version='5.5.0',
                flags={},
                shapes=shapes,
                imagePath=name,
                imageData=None,
                imageHeight=height,
                imageWidth=width,
            )
            _write(out / split / f'{Path(name).stem}.json', json.dumps(content))


def write_voc(data: DetectionData, out: Path) -> None:
    """Write ``JPEGImages/``, ``Annotations/`` and ``ImageSets/Main/``. Pixels are counted from 1."""
    for split, group in data.splits.items():
        stems = []
        for image in group:
            width, height = _size(data, image)
            name = _link(data, image, out / 'JPEGImages')
            stems.append(Path(name).stem)
            root = ElementTree.Element('annotation')
            ElementTree.SubElement(root, 'filename').text = name
            size = ElementTree.SubElement(root, 'size')
            for key, value in (('width', width), ('height', height), ('depth', 3)):
                ElementTree.SubElement(size, key).text = str(value)
            for box in image.boxes:
                element = ElementTree.SubElement(root, 'object')
                ElementTree.SubElement(element, 'name').text = data.classes[box.label]
                ElementTree.SubElement(element, 'difficult').text = str(int(box.is_crowd))
                edges = ElementTree.SubElement(element, 'bndbox')
                for key, edge in zip(('xmin', 'ymin', 'xmax', 'ymax'), _edges(box), strict=True):
                    ElementTree.SubElement(edges, key).text = str(edge + 1)
            _write_xml(out / f'Annotations/{stems[-1]}.xml', root)
        _write(out / f'ImageSets/Main/{split}.txt', '\n'.join(stems) + '\n')


# By the name that the reader has in messages.
WRITERS: dict[str, Callable[[DetectionData, Path], None]] = {
    'COCO JSON': write_coco,
    'YOLO': write_yolo,
    'CVAT XML': write_cvat,
    'LabelMe JSON': write_labelme,
    'Pascal VOC': write_voc,
}


def _edges(box: Box) -> list[Decimal]:
    """Return left, top, right and bottom in decimals, without the rounding of binary sums."""
    x, y, width, height = (Decimal(repr(value)) for value in box.xywh)
    return [x, y, x + width, y + height]


def _size(data: DetectionData, image: LabelledImage) -> tuple[int, int]:
    if image.size:
        return image.size
    return image_size(data.root / image.name)


def _link(data: DetectionData, image: LabelledImage, folder: Path) -> str:
    """Put an image into a folder and return its name there."""
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(image.name).name
    os.symlink((data.root / image.name).resolve(), folder / name)
    return name


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def _write_xml(path: Path, root: ElementTree.Element) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding='utf-8', xml_declaration=True)
