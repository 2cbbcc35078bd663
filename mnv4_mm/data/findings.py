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
    'area-missing': Kind(Rule.HARMLESS, 'the area of a box is width times height'),
    'class-twice': Kind(Rule.FATAL, 'give each class its own name'),
    'class-without-training-pixels': Kind(Rule.HARMLESS, 'the model cannot learn it'),
    'class-without-validation-pixels': Kind(Rule.HARMLESS, 'it is left out of mIoU, unless it is predicted'),
    'file-name': Kind(Rule.DROPPED, 'the image is left out; rename the file'),
    'mask-colour': Kind(
        Rule.DROPPED, 'the image is left out; name each colour in labelmap.txt, and do not smooth or compress masks'
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
    'near-duplicate': Kind(Rule.HARMLESS, 'the score is better than that of new images: move both to the same split'),
    'no-training-images': Kind(Rule.FATAL, 'there is nothing to train on'),
    'no-training-labels': Kind(Rule.FATAL, 'there is nothing to learn'),
    'no-validation-images': Kind(
        Rule.FATAL, 'there is nothing to measure with: move some of the training images there'
    ),
    'no-validation-labels': Kind(Rule.FATAL, 'mIoU cannot be measured: label some of the validation images'),
    'unreadable-image': Kind(Rule.DROPPED, 'the image is left out'),
    'unreadable-mask': Kind(Rule.DROPPED, 'the image is left out'),
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
