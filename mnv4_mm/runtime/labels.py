"""Conversion of predictions to the formats of labelling tools, to be corrected there.

The predictions are read from ``predictions.json``, which ``infer`` writes. Formats:

- COCO: https://docs.cvat.ai/docs/dataset_management/formats/format-coco/ ("COCO 1.0"), also FiftyOne and Roboflow
- YOLO: https://docs.cvat.ai/docs/dataset_management/formats/format-yolo-ultralytics/ ("Ultralytics YOLO Detection 1.0")
- Label Studio: https://labelstud.io/guide/predictions
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.images import read_mask


class Labelled(NamedTuple):
    """An image with its boxes.

    Attributes:
        name: Path of the image, relative to the input folder of ``infer``; a frame of a video is named as CVAT does.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        boxes: A tuple (class, box, score) for each box, best first. The class is an index from 0; the box is (left,
            top, width, height) in pixels, clipped to the image.
    """

    name: str
    width: int
    height: int
    boxes: list[tuple[int, tuple[float, float, float, float], float]]


def write_labels(predictions: Path, form: str, *, score_thr: float, folder: str = '', model: str = '') -> Path:
    """Write predictions as labels beside ``predictions.json``; for Label Studio also ``label_studio_config.xml``.

    Args:
        predictions: ``predictions.json`` of ``infer``.
        form: One of ``FORMS``. Class maps can only be written as ``coco``.
        score_thr: Boxes with lower scores are left out.
        folder: Label Studio: folder of the images, relative to its document root.
        model: Label Studio: name of the model.

    Returns:
        The file to import.

    Raises:
        UserError: The predictions are class maps, and ``form`` does not support them or pycocotools is not installed;
            two images would share a label file; a class map cannot be read; or a file cannot be written.
    """
    content = json.loads(predictions.read_text(encoding='utf-8'))
    if 'annotations' not in content:
        if form != 'coco':
            raise UserError(f'--labels {form} holds boxes; for the class maps of a segmenter use --labels coco')
        return _write(predictions.with_name('labels_coco.json'), _coco_masks(content, predictions.parent))
    classes = [category['name'] for category in content['categories']]
    return FORMS[form](predictions, content, classes, _boxes(content, score_thr), folder, model)


def check_names(names: Iterable[str], form: str) -> None:
    """Check that images with these names can be written in a form.

    Args:
        names: Names of the images, relative to their folder.
        form: A key of ``FORMS``.

    Raises:
        UserError: A name is not UTF-8, or the label files of two images would have the same name.
    """
    files: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f'--labels {form}: the file name {name!r} is not UTF-8; rename the file') from None
        if form == 'yolo' and (other := files.setdefault(_yolo_name(name), name)) != name:
            raise UserError(f'--labels yolo: {name} and {other} would share {_yolo_name(name)}; rename one of them')


def _boxes(content: dict[str, Any], score_thr: float) -> list[Labelled]:
    labels = {category['id']: label for label, category in enumerate(content['categories'])}
    images = {
        image['id']: Labelled(_frame_name(image['file_name']), image['width'], image['height'], [])
        for image in content['images']
    }
    for one in sorted(content['annotations'], key=lambda one: -one['score']):
        image = images[one['image_id']]
        box = _clip(one['bbox'], image.width, image.height)
        if one['score'] >= score_thr and min(box[2:]) > 0:
            image.boxes.append((labels[one['category_id']], box, one['score']))
    return list(images.values())


def _frame_name(name: str) -> str:
    """Name a frame of a video as CVAT does. Other names are returned as they are."""
    return re.sub(r'^.*#(\d+)$', lambda match: f'frame_{int(match[1]):06}.jpg', name)


def _clip(bbox: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    left, top = max(0.0, bbox[0]), max(0.0, bbox[1])
    right, bottom = min(float(width), bbox[0] + bbox[2]), min(float(height), bbox[1] + bbox[3])
    return left, top, right - left, bottom - top


def _coco(
    predictions: Path, content: dict[str, Any], classes: list[str], images: list[Labelled], folder: str, model: str
) -> Path:
    ids = [category['id'] for category in content['categories']]
    image_ids = [image['id'] for image in content['images']]
    annotations: list[dict[str, Any]] = []
    for image_id, image in zip(image_ids, images, strict=True):
        for label, box, score in image.boxes:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=ids[label],
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                    segmentation=[],
                    score=score,
                )
            )
    entries = [
        dict(id=image_id, file_name=image.name, width=image.width, height=image.height)
        for image_id, image in zip(image_ids, images, strict=True)
    ]
    return _write(
        predictions.with_name('labels_coco.json'),
        dict(images=entries, annotations=annotations, categories=content['categories']),
    )


def _coco_masks(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return class maps as COCO annotations with run lengths, one for each class of an image."""
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError('run lengths of class maps need pycocotools: pip install pycocotools') from None
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(content['images'], 1):
        class_map = read_mask(folder / image['class_map'])
        height, width = class_map.shape
        images.append(dict(id=image_id, file_name=_frame_name(image['file_name']), width=width, height=height))
        for name in image['share']:
            run_lengths = mask.encode((class_map == content['values'][name]).astype('uint8', order='F'))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=content['values'][name],
                    segmentation=dict(size=run_lengths['size'], counts=run_lengths['counts'].decode()),
                    bbox=mask.toBbox(run_lengths).tolist(),
                    area=int(mask.area(run_lengths)),
                    iscrowd=0,
                )
            )
    categories = [dict(id=value, name=name) for name, value in content['values'].items()]
    return dict(images=images, annotations=annotations, categories=categories)


def _yolo_name(image: str) -> str:
    return f'labels/train/{PurePosixPath(image).with_suffix(".txt")}'


def _yolo(
    predictions: Path, content: dict[str, Any], classes: list[str], images: list[Labelled], folder: str, model: str
) -> Path:
    path = predictions.with_name('labels_yolo.zip')
    names = ''.join(f'  {label}: {json.dumps(name)}\n' for label, name in enumerate(classes))  # JSON is YAML
    files: dict[str, str] = {}
    check_names([image.name for image in images], 'yolo')
    for image in images:
        lines = []
        for label, (left, top, width, height), _ in image.boxes:
            shares = (
                (left + width / 2) / image.width,
                (top + height / 2) / image.height,
                width / image.width,
                height / image.height,
            )
            lines.append(f'{label} {" ".join(f"{share:.6f}" for share in shares)}\n')
        files[_yolo_name(image.name)] = ''.join(lines)
    files['train.txt'] = ''.join(f'images/train/{image.name}\n' for image in images)
    files['data.yaml'] = f'path: ./\ntrain: train.txt\nnames:\n{names}'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    write_whole(path, buffer.getvalue())
    return path


def _label_studio(
    predictions: Path, content: dict[str, Any], classes: list[str], images: list[Labelled], folder: str, model: str
) -> Path:
    tasks = []
    for image in images:
        result = [
            dict(
                id=f'box{number}',
                type='rectanglelabels',
                from_name='label',
                to_name='image',
                original_width=image.width,
                original_height=image.height,
                image_rotation=0,
                score=score,
                # In per cent of the image.
                value=dict(
                    x=100 * left / image.width,
                    y=100 * top / image.height,
                    width=100 * width / image.width,
                    height=100 * height / image.height,
                    rotation=0,
                    rectanglelabels=[classes[label]],
                ),
            )
            for number, (label, (left, top, width, height), score) in enumerate(image.boxes, 1)
        ]
        url = f'/data/local-files/?d={quote(str(PurePosixPath(folder) / image.name))}'
        tasks.append(dict(data=dict(image=url), predictions=[dict(model_version=model, result=result)]))
    labels = ''.join(f'    <Label value={quoteattr(name)}/>\n' for name in classes)
    write_whole(
        predictions.with_name('label_studio_config.xml'),
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <RectangleLabels name="label" toName="image">\n{labels}  </RectangleLabels>\n</View>\n',
    )
    return _write(predictions.with_name('labels_label_studio.json'), tasks)


def _write(path: Path, content: Any) -> Path:
    write_whole(path, json.dumps(content, ensure_ascii=False))
    return path


Writer = Callable[[Path, dict[str, Any], list[str], list[Labelled], str, str], Path]
FORMS: dict[str, Writer] = {'coco': _coco, 'yolo': _yolo, 'label-studio': _label_studio}
