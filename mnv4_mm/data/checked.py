"""The result of checking a user's data set: findings, statistics, and whether it can be trained on."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mnv4_mm.data.findings import KINDS, Finding, Rule
from mnv4_mm.data.form import TRAIN, VAL
from mnv4_mm.data.formats.files import split_of
from mnv4_mm.errors import UserError

MAX_DROPPED = 0.01  # largest share of the images, and of the boxes, that may be left out


@dataclass(frozen=True)
class Count:
    """Numbers of images, boxes or masks.

    Attributes:
        found: Number in the data set.
        dropped: Number of these that are left out because of a finding.
    """

    found: int
    dropped: int = 0

    @property
    def is_too_many(self) -> bool:
        return self.dropped > MAX_DROPPED * self.found


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of a split after the check.

    Attributes:
        images: Number of images.
        objects: Number of objects: for detection, boxes that are not crowds; for segmentation, labelled pixels.
        empty_images: Number of images without boxes, not even crowds (detection), or without labelled pixels
            (segmentation).
        histogram: Number of objects by class name, including classes without any.
        image_sizes: Number of images by size in pixels, ``<width>x<height>``.
        box_sides: Square roots of width times height of the boxes in pixels, sorted, by class name. Crowds are not
            included. Empty for segmentation.
        crowds: Number of crowd boxes; 0 for segmentation.
    """

    images: int
    objects: int
    empty_images: int
    histogram: dict[str, int]
    image_sizes: dict[str, int]
    box_sides: dict[str, list[float]] = field(default_factory=dict)
    crowds: int = 0

    def digest(self) -> str:
        """Return the number of images and a digest of all statistics, e.g. ``292 images, 5f1c0b9a``."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f'{self.images} images, {hashlib.sha256(text.encode()).hexdigest()[:8]}'


@dataclass(frozen=True)
class CheckedData:
    """Result of checking a data set.

    Attributes:
        root: Folder of the data set.
        task: ``detection`` or ``segmentation``.
        format: Name of the format, e.g. ``Pascal VOC``.
        classes: Class names in the order of labels.
        findings: All findings, those of the reader first. ``grouped`` sorts them by kind.
        notes: Decisions of the reader and of the check, one sentence each.
        counts: Numbers found and left out, by unit: ``images`` and ``boxes``, or ``images`` and ``masks``.
        split_counts: Numbers found and left out by split and unit, e.g. ``validation images``, because even a large
            part of the validation images may be a small part of all images. Empty if the data set has no split of its
            own.
        splits: Statistics of ``train`` and ``val``.
        split_file: JSON file with the names of the images of each split. None if the data set was already
            completely split.
        folder: Folder of the prepared files, in the user's cache. None before the files are written.
    """

    root: Path
    task: str
    format: str
    classes: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    counts: dict[str, Count] = field(default_factory=dict)
    split_counts: dict[str, Count] = field(default_factory=dict)
    splits: dict[str, SplitStatistics] = field(default_factory=dict)
    split_file: Path | None = None
    folder: Path | None = None

    def with_notes(self, notes: Iterable[str]) -> 'CheckedData':
        """Return a copy with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def grouped(self) -> dict[str, list[Finding]]:
        """Return the findings by kind: fatal ones first, then dropped, then harmless ones."""
        order = [Rule.FATAL, Rule.DROPPED, Rule.HARMLESS]
        kinds = sorted(
            {finding.kind for finding in self.findings}, key=lambda kind: (order.index(KINDS[kind].rule), kind)
        )
        return {kind: [finding for finding in self.findings if finding.kind == kind] for kind in kinds}

    def lines(self) -> list[str]:
        """Describe the findings, one line for each kind."""
        return [
            f'{KINDS[kind].rule.value}: {describe(findings, self.root)}' for kind, findings in self.grouped().items()
        ]

    def summary(self) -> list[str]:
        """Describe the result in lines: one on the data set, one for each note and one for each kind of finding."""
        parts = [
            f'{split.images} {name} images with {split.objects} {self.objects}' for name, split in self.splits.items()
        ]
        classes = f'{len(self.classes)} class{"es" if len(self.classes) != 1 else ""}'
        return [f'{self.root}: {self.format}, {classes}, {", ".join(parts)}', *self.notes, *self.lines()]

    @property
    def objects(self) -> str:
        return 'boxes' if self.task == 'detection' else 'labelled pixels'

    def refusals(self, allow_dropped: bool = False) -> list[str]:
        """Return the reasons why the data cannot be used for training and validation.

        Args:
            allow_dropped: Accept that more than 1 % of the images, boxes or masks are left out.

        Returns:
            One message for each reason. The list is empty if the data can be used.
        """
        groups = self.grouped()
        reasons = [describe(findings, self.root) for kind, findings in groups.items() if KINDS[kind].rule is Rule.FATAL]
        excess = {name: count for name, count in self.counts.items() if count.is_too_many}
        parts = {name: count for name, count in self.split_counts.items() if count.is_too_many}
        excess |= {name: count for name, count in parts.items() if name.split()[-1] not in excess}
        if excess and not allow_dropped:
            dropped = [
                describe(findings, self.root) for kind, findings in groups.items() if KINDS[kind].rule is Rule.DROPPED
            ]
            numbers = ' and '.join(
                f'{count.dropped} of {count.found} {name} ({100 * count.dropped / count.found:.3g} %)'
                for name, count in excess.items()
            )
            reason = (
                f'{numbers} would be left out, more than {100 * MAX_DROPPED:g} %: {"; ".join(dropped)}; correct '
                'them, or leave them out by --allow-dropped'
            )
            # If all are left out, other reasons follow from that, e.g. that no training images remain.
            is_all = any(count.dropped == count.found for count in excess.values())
            reasons = [reason, *reasons] if is_all else [*reasons, reason]
        return reasons

    def require_usable(self, allow_dropped: bool = False) -> None:
        """Check that the data can be used for training and validation.

        Args:
            allow_dropped: Accept that more than 1 % of the images, boxes or masks are left out.

        Raises:
            UserError: The data cannot be used; the message names the reasons.
        """
        if reasons := self.refusals(allow_dropped):
            raise UserError(
                f'{self.root}, read as {self.format}: {"; ".join(reasons)} '
                f'(`mnv4 check {self.root} --report FILE.html` lists every finding)'
            )

    def to_json(self) -> str:
        """Return the result as JSON, without the folders of the data set and of the prepared files."""
        # Not asdict, which copies the sizes of all boxes.
        values = {key: value for key, value in vars(self).items() if key not in ('root', 'folder')}
        values['split_file'] = str(self.split_file) if self.split_file else None
        values['findings'] = [[f.kind, _relative(f.file, self.root), f.problem, f.entry] for f in self.findings]
        return json.dumps(values, default=vars)

    @classmethod
    def from_json(cls, text: str | bytes, root: Path, folder: Path) -> 'CheckedData':
        """Parse the JSON of ``to_json``.

        Args:
            text: The JSON.
            root: Folder of the data set, as the user names it now.
            folder: Folder of the prepared files.

        Raises:
            ValueError: The text is not JSON.
            KeyError: A value is missing.
            TypeError: A value is of another type.
        """
        values: dict[str, Any] = json.loads(text)
        values['split_file'] = Path(values['split_file']) if values['split_file'] else None
        values['classes'], values['notes'] = tuple(values['classes']), tuple(values['notes'])
        values['findings'] = tuple(Finding(kind, root / file, *rest) for kind, file, *rest in values['findings'])
        values['counts'] = {name: Count(**count) for name, count in values['counts'].items()}
        values['split_counts'] = {name: Count(**count) for name, count in values['split_counts'].items()}
        values['splits'] = {name: SplitStatistics(**split) for name, split in values['splits'].items()}
        return cls(root=root, folder=folder, **values)


def describe(findings: Sequence[Finding], root: Path, remedy: str | None = None) -> str:
    """Describe the findings of one kind in one line, with the first one in full.

    Args:
        findings: At least one.
        root: Folder of the data set; files are named relative to it.
        remedy: What to do. None takes the remedy of the kind.
    """
    first, remedy = findings[0], remedy or KINDS[findings[0].kind].remedy
    file = '' if first.file == root else _relative(first.file, root)
    place = ', '.join(filter(None, [file, first.entry]))
    shown = f'{place}: {first.problem}' if place else first.problem
    return (
        f'{shown}: {remedy}' if len(findings) == 1 else f'{len(findings)} times {first.kind}: {remedy} (first: {shown})'
    )


def count_by_split(
    found: Mapping[str, Mapping[str, int]],
    dropped: Iterable[tuple[str | None, str]],
    lost: Iterable[tuple[str | None, str]],
) -> dict[str, Count]:
    """Count the images and boxes of the training and validation splits, for ``CheckedData.split_counts``.

    Args:
        found: Split -> unit (``images`` or ``boxes``) -> number of images or boxes that the reader has returned. Splits
            other than ``train`` and ``val`` are ignored.
        dropped: (split, unit) of each image or box that the check has left out. None as split means unknown; such
            entries are not counted.
        lost: (split, unit) of each image or box that the reader has left out, with None as in ``dropped``.

    Returns:
        Numbers found (``lost`` included) and left out, by split and unit, e.g. ``validation images``.
    """
    lost, purposes = list(lost), {TRAIN: 'training', VAL: 'validation'}
    missing, left_out = Counter(lost), Counter([*dropped, *lost])
    return {
        f'{purposes[split]} {unit}': Count(count + missing[split, unit], left_out[split, unit])
        for split, units in found.items()
        if split in purposes
        for unit, count in units.items()
    }


def split_of_finding(finding: Finding, root: Path, sources: Mapping[str, set[Path]]) -> str | None:
    """Return the split that a reader's finding belongs to.

    Args:
        finding: The finding.
        root: Folder of the data set.
        sources: Split -> annotation files of its images.

    Returns:
        The split whose annotation files include the file of the finding. If no split has that file, the split that the
        path of the file names. None if several splits have the file, or the path names no split.
    """
    splits = [split for split, paths in sources.items() if finding.file in paths]
    return splits[0] if len(splits) == 1 else split_of(_relative(finding.file, root)) if not splits else None


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def count_sizes(sizes: Iterable[tuple[int, int]]) -> dict[str, int]:
    """Return the number of images by size, ``<width>x<height>``, the most frequent first."""
    return {f'{width}x{height}': count for (width, height), count in Counter(sizes).most_common()}
