"""Read the rows of YOLO's label files: a class and normalised coordinates, which are converted to pixels.

Normalised coordinates are fractions of the width or height of the image, 0 to 1. In the code they are called shares.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from mnv4_mm.data.findings import Finding
from mnv4_mm.data.form import Box, DetectionData
from mnv4_mm.data.formats.files import amount, first
from mnv4_mm.data.formats.geometry import Xywh

MAX_SHARE = 2  # larger numbers are in pixels
FRACTION = re.compile(r'\.(\d*)')
DIGITS, MIN_DIGITS = 6, 4  # decimals that most tools write, and the fewest that are taken for the decimals of a tool


class RowReader:
    """Reads the rows of YOLO label files as boxes (x, y, width, height) in pixels.

    Args:
        order: Maps each class number in the files to its label, the index of the class in training.
        pose_columns: Number of values in a row with keypoints, including class and box. None if the data set has no
            keypoints.
        data: Data set that findings and notes are added to.
    """

    def __init__(self, order: dict[int, int], pose_columns: int | None, data: DetectionData) -> None:
        self.order = order
        self.pose_columns = pose_columns
        self.data = data
        self.outlines = 0
        self.poses = 0
        self.scores = 0

    def read(self, path: Path, rows: list[list[str]], size: tuple[int, int]) -> Iterator[Box]:
        """Yield the boxes of a label file. Each invalid row becomes a finding instead.

        Args:
            path: The label file.
            rows: Lines of the file, each split at whitespace. Blank lines are empty lists, which are skipped.
            size: Width and height of the image in pixels.
        """
        for number, row in enumerate(rows, 1):
            if not row:
                continue
            entry = f'line {number}'
            try:
                label, xywh = self._read_row(row, size)
            except _RowError as error:
                self.data.findings.append(Finding(error.kind, path, str(error), entry))
                continue
            yield Box(xywh, label, entry)

    def _read_row(self, row: list[str], size: tuple[int, int]) -> tuple[int, Xywh]:
        count = len(row)
        try:
            values = [float(value) for value in row]
        except ValueError as error:
            raise _RowError('box-invalid', problem_of(row)) from error
        label = class_number(row[0])
        if values[0] < 0:
            raise _RowError('class-unlisted', f'class {row[0]} is negative')
        is_polygon = count >= 7 and count % 2 == 1
        if label is None or not (count in (5, 6) or is_polygon or count == self.pose_columns):
            shown = ' '.join(row)
            raise _RowError('box-invalid', f'{shown[:80]!r} is neither "class x y width height" nor a class and points')
        if label not in self.order:
            raise _RowError(
                'class-unlisted', f'class {label}; the classes are {first(map(str, sorted(self.order)), 5)}'
            )
        is_box = count in (5, 6) or count == self.pose_columns
        shares = values[1:5] if is_box else values[1:]
        if not is_box and not all(map(math.isfinite, shares)):
            raise _RowError('box-invalid', f'{" ".join(row)[:80]!r} has points that are not finite')
        if any(abs(share) > MAX_SHARE for share in shares):  # False for NaN, which the check reports
            raise _RowError('shares-expected', f'{" ".join(row[:5])}: coordinates are shares of the image, 0 to 1')
        if count == 6 and self.pose_columns != 6 and not (0 <= values[5] <= 1 or values[5].is_integer()):
            problem = f'{" ".join(row)[:80]!r} has a sixth number, which is neither a score (0 to 1) nor a track id'
            raise _RowError('box-invalid', f'{problem}: write a rotated box as a class and four points')
        digits = _digits(row[1:])
        self.scores += count == 6
        self.poses += count == self.pose_columns
        if is_box:
            return self.order[label], _box(values[1:5], size, digits)
        self.outlines += 1
        return self.order[label], _box_around(shares, size, digits)

    def add_notes(self) -> None:
        if self.outlines:
            self.data.notes.append(f'{amount(self.outlines, "outline")}: the box around each is used')
        if self.poses:
            self.data.notes.append(f'{amount(self.poses, "pose")}: the box of each is used, its keypoints are not')
        if self.scores:
            self.data.notes.append(
                f'{amount(self.scores, "line")} with a sixth number (a score, track id or angle), which is ignored'
            )


def problem_of(row: list[str]) -> str:
    """Explain why a line of a label file could not be read, for the error message.

    Args:
        row: The line, split at whitespace, with at least one part.
    """
    problem = f'{" ".join(row)[:80]!r} is not a class and four or more numbers'
    if any(',' in value for value in row):
        return f'{problem}: numbers need decimal points and blanks between them, no commas'
    if class_number(row[0]) is None:
        return f'{problem}: write the number of the class, and its name into classes.txt'
    return problem


class _RowError(Exception):
    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


def _digits(texts: list[str]) -> int:
    """Return the number of decimals that numbers, given as text, were rounded to, or a larger number."""
    counts = []
    for text in texts:
        match = FRACTION.search(text)
        counts.append(17 if 'e' in text.lower() else len(match[1]) if match else 0)
    # If all numbers have as many decimals, the tool keeps trailing zeros, e.g. supervision with 5 decimals.
    is_fixed = len(set(counts)) == 1 and counts[0] >= MIN_DIGITS
    return counts[0] if is_fixed else max(DIGITS, *counts)


def _box(shares: list[float], size: tuple[int, int], digits: int) -> Xywh:
    """Convert a normalised box ``(cx, cy, width, height)`` to ``(x, y, width, height)`` in pixels."""
    (cx, cy, w, h), (width, height) = shares, size
    unit = 10.0**-digits
    return (
        _shortest((cx - w / 2) * width, 0.75 * unit * width),
        _shortest((cy - h / 2) * height, 0.75 * unit * height),
        _shortest(w * width, 0.5 * unit * width),
        _shortest(h * height, 0.5 * unit * height),
    )


def _box_around(shares: list[float], size: tuple[int, int], digits: int) -> Xywh:
    """Return the box ``(x, y, width, height)`` in pixels around points in normalised coordinates, x, y, x, y, ..."""
    unit = 10.0**-digits
    result = []
    for axis, side in enumerate(size):
        values = shares[axis::2]
        result.append(
            (
                _shortest(min(values) * side, 0.5 * unit * side),
                _shortest((max(values) - min(values)) * side, unit * side),
            )
        )
    return result[0][0], result[1][0], result[0][1], result[1][1]


def _shortest(value: float, error: float) -> float:
    """Return the number with the fewest decimals within ``error`` of a value. The value if more than 3 are needed."""
    error = max(1.0001 * error, 1e-12 * abs(value))  # a share may have been exactly halfway when it was rounded
    for decimals in range(4):
        rounded = round(value, decimals)
        if abs(rounded - value) <= error:
            return rounded + 0.0  # no -0.0
    return value


def class_number(text: str) -> int | None:
    """Parse the number of a class, which may be written as ``1.0``.

    Returns:
        The number. None if the text is not a whole number from 0 to 2**31 - 1.
    """
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number < 2**31 else None
