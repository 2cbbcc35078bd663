"""Recognise the format of a data set and read it."""

import posixpath
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

from mnv4_mm.data.documents import collector_paused
from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import ALL, TEST, TRAIN, VAL, DetectionData, MaskData
from mnv4_mm.data.formats import coco_json, cvat, labelme, voc, yolo
from mnv4_mm.data.formats.files import Files, amount, beginning, first
from mnv4_mm.errors import UserError

Task = Literal['detection', 'segmentation']
# In the order in which they are tried. Some tools write several of them into one folder.
DETECTION: tuple[ModuleType, ...] = (coco_json, yolo, cvat, labelme, voc)
BOXES = (
    'COCO JSON (annotations/*.json, or a JSON file beside the images), YOLO (data.yaml, or images/ and labels/ with a '
    'txt file per image), CVAT for images 1.1 (annotations.xml), LabelMe (a JSON file per image), Pascal VOC (an XML '
    'file per image)'
)
MASKS = 'a folder of images and one of masks with the same names'
# Formats that are common and not read: the beginning of the file, or nothing for any, and what to do.
FOREIGN: dict[str, tuple[tuple[bytes, str], ...]] = {
    '.json': (
        (b'"_via_', 'is of VGG Image Annotator: export it as COCO'),
        (b'"regions"', 'is of VGG Image Annotator: export it as COCO'),
        (b'"completed_by"', 'is in the own format of Label Studio: export as COCO or YOLO, with images'),
        (b'"from_name"', 'is in the own format of Label Studio: export as COCO or YOLO, with images'),
        (b'"coordinates"', 'is in the format of Create ML: export as COCO'),
    ),
    '.csv': ((b'', 'is a table of boxes or classes, which is not read: export as COCO, YOLO or Pascal VOC'),),
    '.tfrecord': ((b'', 'is a TFRecord, which is not read: export as COCO, YOLO or Pascal VOC'),),
    '.parquet': ((b'', 'is a Parquet table, which is not read: export as COCO, YOLO or Pascal VOC'),),
}
ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.7z', '.rar', '.bz2', '.xz')


def recognise(root: str | Path, task: Task | None = None) -> DetectionData | MaskData:
    """Read a data set in whatever format it is in.

    Args:
        root: Its folder.
        task: Kind of labels to look for. None looks for boxes first, then for masks.

    Raises:
        UserError: There is no such folder, none of the formats is in it, or the data cannot be read.
    """
    root = Path(root)
    check_folder(root)
    data: DetectionData | MaskData | None = None
    if task != 'segmentation':
        with collector_paused():
            data = _read_boxes(root)
    if data is None and task != 'detection':
        data = _read_masks(root)
    if data is not None:
        return data
    looked_for = {'detection': BOXES, 'segmentation': MASKS, None: f'{BOXES}; {MASKS}'}[task]
    raise UserError(f'{root} has no data set of a format that is known. {_describe(root)} Looked for: {looked_for}')


def check_folder(root: Path) -> None:
    """Check that the path of a data set is a folder.

    Raises:
        UserError: It does not exist, or is an archive or another file.
    """
    if root.is_dir():
        return
    if not root.exists():
        raise UserError(f'no folder {root}: --data takes the folder of a data set')
    if root.name.lower().endswith(ARCHIVES):
        raise UserError(f'{root} is an archive: unpack it, and name the folder')
    raise UserError(f'{root} is a file: name the folder that holds the images and the annotations, e.g. {root.parent}')


def _read_boxes(root: Path) -> DetectionData | None:
    files = Files(root)
    for i, reader in enumerate(DETECTION):
        read: Callable[[Path, Files], DetectionData | None] = reader.read
        data = read(root, files)
        if data is None:
            continue
        others = [other.NAME for other in DETECTION[i + 1 :] if _is_found(other, files)]
        if others:
            data.notes.append(f'the folder has files of {first(others)} too, which are not used')
        _check_images(files, data)
        _separate(data)
        return data
    return None


def _check_images(files: Files, data: DetectionData) -> None:
    """Check that at least one of the listed images is there."""
    images = [image for group in data.splits.values() for image in group]
    if images and not any(image.name in files.known for image in images):
        source = images[0].source
        raise UserError(
            f'{data.root} has none of the {amount(len(images), "image")} that its annotation files list (the first '
            f'one: {images[0].name} in {source}): name the folder that holds images and annotations'
        )


def _is_found(reader: ModuleType, files: Files) -> bool:
    try:
        return bool(reader.find(files))
    except UserError:  # not its turn
        return True


def _separate(data: DetectionData) -> None:
    """Find images that are in the training split and in another one too."""
    if TRAIN not in data.splits:
        return
    training = {image.name: image for image in data.splits[TRAIN]}
    if VAL in data.splits and training.keys() == {image.name for image in data.splits[VAL]}:
        data.notes.append('the same images are for training and validation: they are split anew')
        del data.splits[VAL]
        data.splits[ALL] = data.splits.pop(TRAIN)
        return
    for split in (VAL, TEST):
        for image in data.splits.get(split, []):
            if image.name in training:
                problem = f'{image.name!r} is for {split}, and for training in {training[image.name].source}'
                data.findings.append(Finding('image-in-two-splits', image.source, problem))


def _read_masks(root: Path) -> MaskData | None:
    from mnv4_mm.data.formats import masks

    return masks.read(root)


def _foreign(files: Files, name: str) -> str | None:
    """Return what is to be done with a file of a format that is not read."""
    start = beginning(files.root / name)
    marks = FOREIGN[posixpath.splitext(name)[1].lower()]
    return next((f'{name} {advice}.' for mark, advice in marks if mark in start), None)


def _describe(root: Path) -> str:
    """Return a sentence on what is in the folder."""
    files = Files(root)
    if not files.names:
        return 'It is empty.'
    archives = [name for name in files.names if name.lower().endswith(ARCHIVES)]
    if archives and not files.images:
        return f'Unpack {first(archives)} first.'
    foreign = next(filter(None, (_foreign(files, name) for name in files.with_suffix(*FOREIGN))), None)
    if foreign:
        return foreign
    if unread := yolo.unread_labels(files):
        return f'It may be meant as YOLO: {unread}.'
    kinds: dict[str, int] = {}
    for name in files.names:
        suffix = posixpath.splitext(name)[1].lower() or 'no suffix'
        kinds[suffix] = kinds.get(suffix, 0) + 1
    most = sorted(kinds, key=lambda suffix: -kinds[suffix])
    return f'It has {first([f"{kinds[suffix]} {suffix}" for suffix in most], 5)} files.'
