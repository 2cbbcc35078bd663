"""Findings of reading and checking a data set, and the rule for each kind."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Rule(str, enum.Enum):
    """Effect of a finding on the data."""

    HARMLESS = 'harmless'
    """Corrected or accepted; mentioned once for each kind."""
    DROPPED = 'dropped'
    """The image, box or mask is left out and counted. More than 1 % is fatal, unless ``--allow-dropped`` is given."""
    FATAL = 'fatal'
    """Nothing is trained or measured."""


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        rule: Effect of these findings on the data.
        remedy: What was done, or what the user should do. One sentence for all findings of the kind.
    """

    rule: Rule
    remedy: str


# Slug -> kind. Slugs appear in messages, reports and docs/data_checks.md.
KINDS: dict[str, Kind] = {
    'annotation-format': Kind(Rule.FATAL, 'convert all labels to one format: those of this file are not read'),
    'annotation-id-twice': Kind(Rule.FATAL, 'give each annotation its own id'),
    'annotation-missing': Kind(Rule.DROPPED, 'the image, which has no annotation file, is left out'),
    'annotation-shared': Kind(Rule.DROPPED, 'the image is left out; give each image a name of its own'),
    'annotation-unreadable': Kind(Rule.DROPPED, 'the image, whose annotation file cannot be read, is left out'),
    'annotation-without-image': Kind(Rule.DROPPED, 'the labels of the image, which does not exist, are left out'),
    'area-missing': Kind(Rule.HARMLESS, 'the area of a box is width times height'),
    'area-too-large': Kind(Rule.HARMLESS, 'the area of a box is width times height'),
    'area-unit': Kind(Rule.FATAL, 'boxes and areas are of different units: write both in pixels'),
    'area-zero': Kind(Rule.HARMLESS, 'the area of a box is width times height'),
    'box-clipped': Kind(Rule.HARMLESS, 'the box is clipped to the image'),
    'box-empty': Kind(Rule.DROPPED, 'the box is left out'),
    'box-invalid': Kind(Rule.DROPPED, 'the box is left out'),
    'box-negative': Kind(Rule.DROPPED, 'the box, shown as [x, y, width, height], is left out'),
    'box-not-finite': Kind(Rule.DROPPED, 'the box is left out'),
    'box-outside': Kind(Rule.DROPPED, 'the box, shown as [x, y, width, height] in pixels, is left out'),
    'box-sub-pixel': Kind(Rule.DROPPED, 'the box is left out'),
    'box-twice': Kind(Rule.HARMLESS, 'the box is used once'),
    'box-two-classes': Kind(Rule.HARMLESS, 'both boxes are trained on; correct one if only one class is meant'),
    'boxes-as-corners': Kind(
        Rule.FATAL,
        'they look like (x1, y1, x2, y2): write them as [x, y, width, height] in pixels, in YOLO as centre, width and '
        'height in shares of the image',
    ),
    'boxes-as-percent': Kind(
        Rule.FATAL, 'they look like percent of the image: write them in pixels, in COCO JSON as [x, y, width, height]'
    ),
    'boxes-as-shares': Kind(
        Rule.FATAL, 'they look like shares of the image: write them in pixels, in COCO JSON as [x, y, width, height]'
    ),
    'boxes-nearly-twice': Kind(
        Rule.HARMLESS, 'both are trained on; if several people have labelled the same objects, keep the boxes of one'
    ),
    'boxes-unlike-polygons': Kind(
        Rule.FATAL, 'correct the boxes or the polygons; if the boxes are right, remove the polygons (`segmentation`)'
    ),
    'category-id-twice': Kind(Rule.FATAL, 'give each category its own id'),
    'class-count': Kind(Rule.FATAL, 'correct the list of classes'),
    'class-ids-shifted': Kind(
        Rule.FATAL, 'count alike in both (YOLO counts from 0), or add the missing class to the list'
    ),
    'class-name': Kind(Rule.FATAL, 'give each class a name in letters, digits or other signs that can be seen'),
    'class-name-unusual': Kind(Rule.HARMLESS, 'it is used as it is, blanks and signs included'),
    'class-similar': Kind(Rule.HARMLESS, 'they stay separate classes; write them alike if they are the same'),
    'class-twice': Kind(Rule.FATAL, 'give each class its own name'),
    'class-unknown': Kind(Rule.FATAL, 'a class without training data cannot be learned: name the classes alike'),
    'class-unlisted': Kind(Rule.FATAL, 'add the class to the list of classes, or correct the label'),
    'class-without-training-boxes': Kind(Rule.HARMLESS, 'without a training box, the model will not find it'),
    'class-without-training-pixels': Kind(Rule.HARMLESS, 'the model cannot learn it'),
    'class-without-validation-boxes': Kind(Rule.HARMLESS, 'without a validation box, AP cannot be measured'),
    'class-without-validation-pixels': Kind(Rule.HARMLESS, 'it is left out of mIoU, unless it is predicted'),
    'crowd-all': Kind(
        Rule.FATAL,
        'crowds are neither trained on nor measured: set iscrowd, ignore or difficult to 0 (CVAT writes iscrowd 1 for '
        'each mask drawn by brush)',
    ),
    'dark-image': Kind(
        Rule.HARMLESS, 'the model sees an almost black image: scale the values of 16-bit images to their full range'
    ),
    'entry-invalid': Kind(Rule.FATAL, 'correct or remove the entry'),
    'file-name': Kind(Rule.DROPPED, 'the image is left out; rename the file'),
    'image-ambiguous': Kind(Rule.FATAL, 'leave one of the images, or give each a name of its own'),
    'image-id-twice': Kind(Rule.FATAL, 'give each image its own id'),
    'image-in-two-splits': Kind(Rule.FATAL, 'list each image in one split: its score would be that of training'),
    'image-size': Kind(Rule.FATAL, 'the annotations belong to another version of the image'),
    'image-size-exif': Kind(
        Rule.FATAL,
        'images are read as EXIF turns them: label the turned image, or remove the EXIF orientation from the file',
    ),
    'image-twice': Kind(Rule.FATAL, 'list each image once, with all of its boxes'),
    'image-unlisted': Kind(Rule.DROPPED, 'the box, which belongs to no image, is left out'),
    'listed-twice': Kind(Rule.HARMLESS, 'the image counts once'),
    'mask-colour': Kind(
        Rule.DROPPED,
        'the image is left out; name each colour in labelmap.txt; do not smooth masks or save them as JPEG',
    ),
    'mask-extra': Kind(Rule.FATAL, 'join the masks of an image into one, or move the others out of the folder'),
    'mask-jpeg': Kind(Rule.DROPPED, 'the image is left out; JPEG does not keep the values of a mask: save it as PNG'),
    'mask-missing': Kind(Rule.DROPPED, 'the image is left out'),
    'mask-shared': Kind(Rule.DROPPED, 'the image is left out; give each image a name of its own'),
    'mask-size': Kind(Rule.DROPPED, 'the image is left out; the mask belongs to another version of it'),
    'mask-size-exif': Kind(
        Rule.DROPPED,
        'the image is left out; images are read as EXIF turns them: turn the mask too, or remove the orientation',
    ),
    'mask-unlabelled': Kind(Rule.HARMLESS, 'nothing is learned from it, and nothing measured'),
    'mask-value': Kind(Rule.DROPPED, 'the image is left out'),
    'mask-without-image': Kind(Rule.DROPPED, 'the mask is left out'),
    'missing-image': Kind(Rule.DROPPED, 'the image is left out'),
    'name-differs': Kind(Rule.HARMLESS, 'the image with the name of the annotation file is used'),
    'near-duplicate': Kind(Rule.HARMLESS, 'the score is better than that of new images: move both to the same split'),
    'no-classes': Kind(Rule.FATAL, 'name at least one class'),
    'no-training-boxes': Kind(Rule.FATAL, 'there is nothing to train on'),
    'no-training-images': Kind(Rule.FATAL, 'there is nothing to train on'),
    'no-training-labels': Kind(Rule.FATAL, 'there is nothing to learn'),
    'no-validation-boxes': Kind(
        Rule.FATAL, 'there is nothing to measure AP with: label them, or move labelled images there'
    ),
    'no-validation-images': Kind(Rule.FATAL, 'move some of the training images there'),
    'no-validation-labels': Kind(Rule.FATAL, 'mIoU cannot be measured: label some of the validation images'),
    'path-outside': Kind(Rule.FATAL, 'write paths relative to the data set, e.g. images/0001.jpg'),
    'path-separator': Kind(Rule.HARMLESS, 'backslashes are read as slashes'),
    'path-spelling': Kind(
        Rule.HARMLESS, 'the file whose name differs in upper and lower case, or in how accents are coded, is used'
    ),
    'shares-expected': Kind(Rule.FATAL, 'divide x and width by the width of the image, y and height by its height'),
    'size-invalid': Kind(Rule.HARMLESS, 'the size of the image file is used'),
    'split-missing': Kind(Rule.FATAL, 'correct the path, which is relative to the file or to the `path` in it'),
    'unreadable-image': Kind(Rule.DROPPED, 'the image is left out'),
    'unreadable-mask': Kind(Rule.DROPPED, 'the image is left out'),
    'zero-box': Kind(Rule.HARMLESS, 'it is used as an image without objects'),
}


# Remedy for what --data would leave out in files that a config names: OpenMMLab reads these itself.
CORRECT = 'correct it, or name the folder of the data by --data, which leaves it out (--allow-dropped: above 1 %)'


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: Key of ``KINDS``.
        file: File of the data set that has the problem, or its folder.
        problem: What is wrong, with the values, e.g. ``the box [3, 4, 0, 7] of a.jpg has no area``.
        entry: The entry in the file, e.g. ``annotation 17`` or ``line 4``. Empty if the whole file is meant.
    """

    kind: str
    file: Path
    problem: str
    entry: str = ''

    @property
    def rule(self) -> Rule:
        return KINDS[self.kind].rule

    def __str__(self) -> str:
        return f'{self.file}{f", {self.entry}" if self.entry else ""}: {self.problem}'


def dark_image(path: Path, brightest: int) -> Finding:
    """Return the finding for an image that is almost black, such as a 16-bit file from a 12-bit sensor."""
    return Finding('dark-image', path, f'its brightest value is {brightest} of 255')
