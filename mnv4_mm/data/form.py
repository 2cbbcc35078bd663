"""The internal form of a data set, whatever format it was read from.

Readers (``data/formats/``) keep invalid boxes and images that do not exist; the check (``data/check.py``) adds a
finding for each of these. An entry that cannot be represented in this form, e.g. an image without a name, is left out
by the reader, which adds a finding for it. Imports nothing heavy.
"""

from dataclasses import dataclass, field
from pathlib import Path

from mnv4_mm.data.findings import Finding

# Names of the splits. A data set without splits has only ALL, which data/split.py splits.
TRAIN, VAL, TEST, ALL = 'train', 'val', 'test', 'all'


@dataclass
class Box:
    """A labelled box as the file has it.

    Attributes:
        xywh: Left, top, width and height in pixels, counted from 0. The box may be non-finite, empty or outside of the
            image.
        label: Index of the class.
        entry: Position in the annotation file, e.g. ``annotation 17``, ``object 3``, ``line 4``.
        area: Area that the file states, in square pixels. None if it states none.
        is_crowd: True for a group of objects, or an object marked as difficult or ignored: neither trained on nor
            counted as missed.
        annotation_id: Id of the annotation in the file. None if there is no id, or it is not a 64-bit integer.
    """

    xywh: tuple[float, float, float, float]
    label: int
    entry: str
    area: float | None = None
    is_crowd: bool = False
    annotation_id: int | None = None


@dataclass
class LabelledImage:
    """An image with its boxes.

    Attributes:
        name: Path relative to the root of the data set, with ``/``.
        source: Path of the annotation file that lists the image or holds its boxes. If there is no such file, the path
            of the image.
        boxes: Boxes of the image in the order of the file.
        size: (width, height) in pixels. Before the check, the size that the annotation file states, or None if it
            states none. After the check, the size of the decoded image.
        image_id: Id of the image in the file. None if the format has no ids, or if not all ids are 64-bit integers.
            Images without ids are numbered in the order of their names.
    """

    name: str
    source: Path
    boxes: list[Box] = field(default_factory=list)
    size: tuple[int, int] | None = None
    image_id: int | None = None


@dataclass
class DetectionData:
    """A detection data set.

    Attributes:
        root: Folder of the data set.
        format: Name of the format for messages, e.g. ``Pascal VOC``.
        classes: Class names in the order of labels.
        splits: Images by split (``TRAIN``, ``VAL``, ``TEST`` or ``ALL``), ordered by name.
        category_ids: Category ids in the order of labels: those of the file, or 1, 2, ... if the file has none, or ids
            that are repeated or not 64-bit integers. An empty tuple also stands for 1, 2, ...
        findings: Findings of the reader.
        notes: Decisions of the reader, one sentence each, e.g. ``the root category "cells" has no boxes and is left
            out``.
        has_centres: True if the file holds the centres of boxes, as in YOLO, not their upper left corners.
    """

    root: Path
    format: str
    classes: tuple[str, ...]
    splits: dict[str, list[LabelledImage]]
    category_ids: tuple[int, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_centres: bool = False


@dataclass
class MaskedImage:
    """An image with its mask.

    Attributes:
        name: Path of the image relative to the root of the data set, with ``/``.
        mask: Path of the mask relative to the root of the data set, with ``/``.
    """

    name: str
    mask: str


@dataclass
class MaskData:
    """A segmentation data set.

    Attributes:
        root: Folder of the data set.
        format: Name of the format for messages, e.g. ``masks in colours``.
        classes: Class names in the order of labels.
        splits: Images by split (``TRAIN`` and ``VAL``, or ``ALL``), ordered by name.
        values: Mask value -> label. Values that are neither here nor in ``ignored`` are mistakes. Empty for masks in
            colours.
        colours: RGB -> label, for masks in colours. Empty for masks of values.
        ignored: Mask values (or RGB colours) without a label.
        findings: Findings of the reader.
        notes: Decisions of the reader, one sentence each.
    """

    root: Path
    format: str
    classes: tuple[str, ...]
    splits: dict[str, list[MaskedImage]]
    values: dict[int, int] = field(default_factory=dict)
    colours: dict[tuple[int, int, int], int] = field(default_factory=dict)
    ignored: set[int] | set[tuple[int, int, int]] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
