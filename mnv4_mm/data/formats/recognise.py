"""Recognise the format of a data set and read it."""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

from mnv4_mm.data.documents import collector_paused
from mnv4_mm.data.form import DetectionData, MaskData
from mnv4_mm.data.formats import coco_json, cvat, labelme, voc, yolo
from mnv4_mm.data.formats.files import Files, amount, beginning, first, holds_predictions, separate
from mnv4_mm.errors import UserError
from mnv4_mm.images import UNREAD_SUFFIXES

Task = Literal['detection', 'segmentation']
# In the order in which they are tried. Some tools write several of them into one folder.
DETECTION: tuple[ModuleType, ...] = (coco_json, yolo, cvat, labelme, voc)
BOXES = (
    'COCO JSON (annotations/*.json, or a JSON file beside the images), YOLO (data.yaml, or images/ and labels/ with a '
    'txt file per image), CVAT for images 1.1 (annotations.xml), LabelMe (a JSON file per image), Pascal VOC (an XML '
    'file per image)'
)
MASKS = 'a folder of images and one of masks with the same names'
LABEL_STUDIO = 'is in the own format of Label Studio (JSON or JSON-MIN): export as COCO or YOLO, with images'
JSON_LINES = 'has JSON lines, an object a line, which are not read: export as COCO, a single object'
DOTA = 'is in the format of DOTA, with rotated boxes: convert it to YOLO OBB or COCO'
# Common formats that are not read, by suffix: a pattern in the beginning of a file (empty for any file), and advice.
FOREIGN: dict[str, tuple[tuple[bytes, str], ...]] = {
    '.json': (
        (b'"_via_', 'is of VGG Image Annotator: export it as COCO'),
        (b'"regions"', 'is of VGG Image Annotator: export it as COCO'),
        *(
            (mark, LABEL_STUDIO)
            for mark in (b'"completed_by"', b'"from_name"', b'"rectanglelabels"', b'"polygonlabels"')
        ),
        (b'"label_id"', 'is in the own format of Datumaro: export as COCO, with images ("COCO 1.0" in CVAT)'),
        (b'"coordinates"', 'is in the format of Create ML: export as COCO'),
        (b'"classTitle"', 'is in the own format of Supervisely: export as COCO or YOLO'),
        (b'"_cls"', 'is in the own format of FiftyOne: export as COCO (fiftyone.types.COCODetectionDataset)'),
        (rb'\A\s*\{[^\n]*\}\s*\n\s*\{', JSON_LINES),
    ),
    '.jsonl': ((b'', JSON_LINES),),
    '.ndjson': ((b'', JSON_LINES),),
    '.txt': (
        (rb'\A(imagesource|gsd):', DOTA),
        (rb'\A([-\d.]+ ){8}[A-Za-z][\w-]* [012]\s', DOTA),
        (rb'\A[A-Za-z_]+( [-\d.]+){14,15}\s', 'is in the format of KITTI: convert it to COCO or YOLO'),
    ),
    '.xml': ((b'<imagesize>', 'is in the format of LabelMe 3.0: export as COCO, CVAT or Pascal VOC'),),
    '.csv': ((b'', 'is a table of boxes or classes, which is not read: export as COCO, YOLO or Pascal VOC'),),
    '.tfrecord': ((b'', 'is a TFRecord, which is not read: export as COCO, YOLO or Pascal VOC'),),
    '.npy': ((b'', 'is a NumPy array, which is not read: save masks as PNG, each pixel with the value of its class'),),
    '.parquet': ((b'', 'is a Parquet table, which is not read: export as COCO, YOLO or Pascal VOC'),),
}
ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.7z', '.rar', '.bz2', '.xz')


def recognise(root: str | Path, task: Task | None = None) -> DetectionData | MaskData:
    """Recognise the format of a data set and read it.

    Args:
        root: Folder of the data set.
        task: Kind of labels to look for. None looks for boxes first, then for masks.

    Returns:
        ``DetectionData`` if boxes are found, ``MaskData`` if masks are.

    Raises:
        UserError: There is no such folder, it has no data set of a known format, the data cannot be read, none of the
            listed images exists, or the folder has boxes in two formats that differ.
    """
    root = Path(root)
    check_folder(root)
    files = Files(root)
    data: DetectionData | MaskData | None = None
    if task != 'segmentation':
        with collector_paused():
            data = _read_boxes(root, files)
    if data is None and task != 'detection':
        data = _read_masks(root)
    incomplete = [] if task == 'segmentation' else coco_json.find_incomplete(files)
    if data is not None:
        _note_unread(files, data)
        if incomplete:
            data.notes.append(f'not used, since they are not whole COCO annotation files: {first(incomplete)}')
        return data
    if incomplete and not any(_foreign(files, name) for name in incomplete):
        coco_json.read(root, files)  # raises an error that says what is missing
    if task:
        refuse_other_task(root, task)
    looked_for = {'detection': BOXES, 'segmentation': MASKS, None: f'{BOXES}; {MASKS}'}[task]
    if not files.names:
        raise UserError(f'{root} is empty; expected one of: {looked_for}')
    raise UserError(f'{root} has no data set in a known format. {_describe(root, files)} Expected one of: {looked_for}')


def refuse_other_task(root: str | Path, task: Task) -> None:
    """Raise an error if a folder without labels for a task has labels for the other task.

    Raises:
        UserError: It has labels for the other task.
    """
    root = Path(root)
    try:
        found = _read_boxes(root, Files(root)) if task == 'segmentation' else _read_masks(root)
    except UserError:
        return
    if found is not None:
        holds = f'boxes ({found.format})' if task == 'segmentation' else 'masks'
        config = 'mnv4_ssdlite_coco' if task == 'segmentation' else 'mnv4_lraspp_ade20k'
        raise UserError(f'{root} holds {holds}, which are not for {task}: use a config for them, such as {config}')


def check_folder(root: Path) -> None:
    """Check that the path of a data set is a folder.

    Raises:
        UserError: The path does not exist, or is an archive or another file.
    """
    if root.is_dir():
        return
    if not root.exists():
        raise UserError(f'no folder {root}: name the folder of a data set')
    if root.name.lower().endswith(ARCHIVES):
        raise UserError(f'{root} is an archive: unpack it, and name the folder')
    raise UserError(f'{root} is a file: name the folder that holds the images and the annotations, e.g. {root.parent}')


def _read_boxes(root: Path, files: Files) -> DetectionData | None:
    for i, reader in enumerate(DETECTION):
        read: Callable[[Path, Files], DetectionData | None] = reader.read
        is_incomplete = reader is coco_json and not coco_json.find(files)
        data = None if is_incomplete else read(root, files)
        if data is None:
            continue
        others = [other for other in DETECTION[i + 1 :] if _is_found(other, files)]
        for other in others:
            _compare(data, other, files)
        if others:
            data.notes.append(
                f'the folder has files of {first(other.NAME for other in others)} too, which are not used'
            )
        _check_images(files, data)
        separate(data)
        return data
    return None


def _compare(data: DetectionData, other: ModuleType, files: Files) -> None:
    """Check that the labels in another format have the same classes and number of boxes.

    Raises:
        UserError: Classes or numbers differ, so one of the two formats is out of date or of another data set.
    """
    try:
        second: DetectionData | None = other.read(data.root, files)
    except UserError:  # not complete, or not of this format after all
        return
    if second is None or not _count_boxes(second):
        return
    # YOLO without a list of classes has numbers for names.
    is_named = not all(name.isdecimal() for name in second.classes)
    if (is_named and set(second.classes) != set(data.classes)) or _count_boxes(second) != _count_boxes(data):
        raise UserError(
            f'{data.root} has labels in two formats, which differ: {_describe_labels(data, second)}, and '
            f'{_describe_labels(second, data)}: leave the files of one format in the folder'
        )


def _count_boxes(data: DetectionData) -> int:
    return sum(len(image.boxes) for images in data.splits.values() for image in images)


def _describe_labels(data: DetectionData, other: DetectionData) -> str:
    """Describe boxes and classes for a message, beginning with classes that the other data set does not have."""
    source = next((image.source for images in data.splits.values() for image in images), data.root)
    classes = first(map(repr, sorted(data.classes, key=lambda name: name in other.classes))) or 'no class'
    return f'{data.format} with {amount(_count_boxes(data), "box")} of {classes} ({source.relative_to(data.root)})'


def _note_unread(files: Files, data: DetectionData | MaskData) -> None:
    """Add a note on images in formats that are not read, except those that have findings or are listed."""
    listed = {image.name for images in data.splits.values() for image in images}
    named = listed | {finding.file.relative_to(files.root).as_posix() for finding in data.findings}
    unread = [name for name in files.with_suffix(*UNREAD_SUFFIXES) if name not in named]
    if unread:
        data.notes.append(
            f'{amount(len(unread), "image")} in formats that are not read, left out: {first(unread)}; convert them to '
            'JPEG'
        )


def _check_images(files: Files, data: DetectionData) -> None:
    """Check that at least one of the listed images is there."""
    images = [image for group in data.splits.values() for image in group]
    if images and not any(image.name in files.names for image in images):
        source = images[0].source
        unread = files.with_suffix(*UNREAD_SUFFIXES)
        hint = f'; {first(unread)} are in formats that are not read: convert them to JPEG' if unread else ''
        raise UserError(
            f'{data.root} has none of the {amount(len(images), "image")} that its annotation files list (the first '
            f'one: {images[0].name} in {source}): name the folder that holds images and annotations{hint}'
        )


def _is_found(reader: ModuleType, files: Files) -> bool:
    try:
        return bool(reader.find(files))
    except UserError:  # a file of this format is invalid, but not used anyway
        return True


def _read_masks(root: Path) -> MaskData | None:
    from mnv4_mm.data.formats import masks

    return masks.read(root)


def _foreign(files: Files, name: str) -> str | None:
    """Return advice on a file of a format that is not read. None if the format is not recognised."""
    start = beginning(files.root / name)
    marks = FOREIGN[posixpath.splitext(name)[1].lower()]
    return next((f'{name} {advice}.' for mark, advice in marks if re.search(mark, start)), None)


def _describe(root: Path, files: Files) -> str:
    """Return a sentence on what is in the folder."""
    archives = [name for name in files.names if name.lower().endswith(ARCHIVES)]
    if archives and not files.images:
        return f'Unpack {first(archives)} first.'
    foreign = next(filter(None, (_foreign(files, name) for name in files.with_suffix(*FOREIGN))), None)
    if foreign:
        return foreign
    if by_image := coco_json.find_by_image(files):
        return (
            f'It has {amount(len(by_image), "COCO JSON file")} with the name of an image ({first(by_image)}): '
            'join them into one file with another name, e.g. annotations.json.'
        )
    predictions = next((name for name in files.with_suffix('.json') if holds_predictions(root / name)), None)
    if predictions:
        return f'{predictions} has predictions: remove "score" from its annotations if they are the ground truth.'
    if unread := yolo.unread_labels(files):
        return f'It may be meant as YOLO: {unread}.'
    masks = [name for name in files.images if 'mask' in name.lower()]
    if masks:
        return (
            f'It may be meant as masks ({first(masks)}): an image needs one mask with the values of all classes, e.g. '
            'masks/a.png for images/a.jpg.'
        )
    kinds: dict[str, int] = {}
    for name in files.names:
        suffix = posixpath.splitext(name)[1].lower() or 'no suffix'
        kinds[suffix] = kinds.get(suffix, 0) + 1
    most = sorted(kinds, key=lambda suffix: -kinds[suffix])
    return f'It has {first([f"{kinds[suffix]} {suffix}" for suffix in most], 5)} files.'
