"""What reading and checking a data set can find, and the rule for each kind of finding."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Rule(str, enum.Enum):
    """What happens to the data because of a finding."""

    HARMLESS = 'harmless'
    """Corrected, or without effect; mentioned once."""
    DROPPED = 'dropped'
    """The image or box is left out and counted. More than 1 % of them is fatal unless ``--allow-dropped``."""
    FATAL = 'fatal'
    """Nothing is trained or measured."""


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        rule: Its rule.
        remedy: What was done, or what the user should do. One sentence for all findings of the kind.
    """

    rule: Rule
    remedy: str


# Slug -> kind. Slugs appear in messages, reports and docs/data_checks.md.
KINDS: dict[str, Kind] = {
    'annotation-id-twice': Kind(Rule.FATAL, 'give each annotation of a file its own id'),
    'area-missing': Kind(Rule.HARMLESS, 'the area of a box is width times height'),
    'area-zero': Kind(Rule.HARMLESS, 'the area of a box is width times height'),
    'box-clipped': Kind(Rule.HARMLESS, 'the box is clipped to the image'),
    'box-empty': Kind(Rule.DROPPED, 'the box is left out'),
    'box-negative': Kind(Rule.DROPPED, 'the box is left out; boxes are [x, y, width, height]'),
    'box-not-finite': Kind(Rule.DROPPED, 'the box is left out'),
    'box-outside': Kind(Rule.DROPPED, 'the box is left out; boxes are [x, y, width, height] in pixels'),
    'box-sub-pixel': Kind(Rule.DROPPED, 'the box is left out'),
    'box-twice': Kind(Rule.HARMLESS, 'the box is used once'),
    'box-two-classes': Kind(Rule.HARMLESS, 'both boxes are trained on; correct one if only one class is meant'),
    'boxes-as-corners': Kind(
        Rule.FATAL, 'they look like (x1, y1, x2, y2): write them as [x, y, width, height] in pixels'
    ),
    'boxes-as-shares': Kind(
        Rule.FATAL, 'they look like shares of the image: write them as [x, y, width, height] in pixels'
    ),
    'category-id-twice': Kind(Rule.FATAL, 'give each category its own id'),
    'class-name-empty': Kind(Rule.FATAL, 'give each class a name'),
    'class-name-unusual': Kind(Rule.HARMLESS, 'it is used as it is, blanks and signs included'),
    'class-names-alike': Kind(Rule.HARMLESS, 'they are kept apart; give them one name if one class is meant'),
    'class-twice': Kind(Rule.FATAL, 'give each class its own name'),
    'class-without-training-boxes': Kind(Rule.HARMLESS, 'it has no training box: the model will not find it'),
    'class-without-validation-boxes': Kind(Rule.HARMLESS, 'it has no validation box: its AP cannot be measured'),
    'crowd-all': Kind(
        Rule.FATAL,
        'crowds are neither trained on nor measured: set iscrowd to 0 (CVAT writes 1 for each mask drawn by brush)',
    ),
    'dark-image': Kind(
        Rule.HARMLESS, 'the model sees next to black: scale the values of 16-bit images to their full range'
    ),
    'image-id-twice': Kind(Rule.FATAL, 'give each image of a file its own id'),
    'image-size': Kind(Rule.FATAL, 'the annotations belong to another version of the image'),
    'image-size-exif': Kind(
        Rule.FATAL,
        'images are read as EXIF turns them: label the turned image, or remove the EXIF orientation from the file',
    ),
    'image-size-zero': Kind(Rule.HARMLESS, 'the size of the image file is used'),
    'image-twice': Kind(Rule.HARMLESS, 'the boxes of its entries are joined'),
    'missing-image': Kind(Rule.DROPPED, 'the image is left out'),
    'near-duplicate': Kind(Rule.HARMLESS, 'the score is better than that of new images: move both to the same split'),
    'no-classes': Kind(Rule.FATAL, 'name at least one class'),
    'no-training-boxes': Kind(Rule.FATAL, 'there is nothing to train on'),
    'no-training-images': Kind(Rule.FATAL, 'there is nothing to train on'),
    'no-validation-boxes': Kind(
        Rule.FATAL, 'there is nothing to measure AP with: label them, or move labelled images there'
    ),
    'no-validation-images': Kind(
        Rule.FATAL, 'there is nothing to measure AP with: move some of the training images there'
    ),
    'path-outside': Kind(Rule.FATAL, 'images must be in the folder of the data set'),
    'unreadable-image': Kind(Rule.DROPPED, 'the image is left out'),
    'zero-box': Kind(Rule.HARMLESS, 'it is used as an image without objects'),
}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: Key of ``KINDS``.
        file: File of the data set that it was found in.
        problem: What is wrong, with the values, e.g. ``the box [3, 4, 0, 7] has no width``.
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
