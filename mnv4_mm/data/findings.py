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
    'unreadable-image': Kind(Rule.DROPPED, 'the image is left out'),
    'class-twice': Kind(Rule.FATAL, 'give each class its own name'),
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
