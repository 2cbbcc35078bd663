"""Compute boxes from the coordinates in annotation files, without adding rounding errors."""

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, TypeGuard

LARGEST = 1e9  # pixels; neither areas nor differences overflow
Number = str | float | int
Xywh = tuple[float, float, float, float]


def box_of_edges(left: Number, top: Number, right: Number, bottom: Number, offset: int = 0) -> Xywh:
    """Return ``(x, y, width, height)`` of a box that is given by its edges.

    Width and height are computed by decimal arithmetic: 30.3 - 10.1 is 20.2, not 20.200000000000003, so that a box is
    the same whether a file holds its edges or its size. Edges that are infinite or NaN give a box that is not finite.

    Args:
        left: Smallest x in pixels, as a number or as text, like the other edges.
        top: Smallest y.
        right: Largest x.
        bottom: Largest y.
        offset: Coordinate of the first pixel in the file, 0 or 1. The offset is subtracted from x and y.

    Raises:
        ValueError: An edge is not a number.
    """
    x1, y1, x2, y2 = (_decimal(value) for value in (left, top, right, bottom))
    if not all(value.is_finite() for value in (x1, y1, x2, y2)):
        return float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)
    return float(x1 - offset), float(y1 - offset), float(x2 - x1), float(y2 - y1)


def _decimal(value: Number) -> Decimal:
    if isinstance(value, bool):
        raise ValueError(f'{value!r} is not a number')
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except (InvalidOperation, TypeError) as error:
        raise ValueError(f'{value!r} is not a number') from error
    # A Decimal may have an exponent that a float cannot hold.
    return number if number.is_nan() or abs(number) < Decimal('1e300') else Decimal('inf')


def box_around(points: Sequence[Sequence[Number]]) -> Xywh:
    """Return ``(x, y, width, height)`` of the smallest box around points.

    Args:
        points: ``(x, y)`` of each point, as numbers or as text.

    Raises:
        ValueError: There are no points, or a coordinate is not a finite number.
    """
    if not points:
        raise ValueError('no points')
    xs, ys = ([_decimal(point[axis]) for point in points] for axis in (0, 1))
    if not all(value.is_finite() for value in (*xs, *ys)):
        raise ValueError('a coordinate is not finite')
    return float(min(xs)), float(min(ys)), float(max(xs) - min(xs)), float(max(ys) - min(ys))


def is_number(value: Any) -> bool:
    return type(value) in (int, float)  # not isinstance, for which True is a number


def are_numbers(values: Any) -> TypeGuard[list[float]]:
    """Return True for a list of numbers that are finite and not huge."""
    return isinstance(values, list) and all(is_number(value) and abs(value) < LARGEST for value in values)


def box_around_polygons(segmentation: Any) -> list[float] | None:
    """Return the box ``[x, y, width, height]`` around the polygons of a COCO annotation.

    Args:
        segmentation: Polygons, lists of x, y, x, y, ..., or a single one that is not in a list.

    Returns:
        The box. None if the value is anything else, or a polygon has fewer than three points.
    """
    if not isinstance(segmentation, list) or not segmentation:
        return None
    parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if not all(are_numbers(part) and len(part) >= 6 and len(part) % 2 == 0 for part in parts):
        return None
    xs, ys = ([value for part in parts for value in part[axis::2]] for axis in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def rotation(value: object) -> float:
    """Return the attribute ``rotation`` of an upright box, as CVAT writes it to COCO JSON and Pascal VOC, in degrees.

    Args:
        value: The attribute as in the file. CVAT writes a number to JSON; text there is an attribute of the user's own
            with this name, which may mean anything.

    Returns:
        The angle; 0 if the value is not a finite number, or a multiple of 360.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    try:
        degrees = float(value)
    except OverflowError:
        return 0.0
    return degrees % 360 if math.isfinite(degrees) else 0.0


def box_around_rotated(
    x: float, y: float, width: float, height: float, degrees: float, image: tuple[int, int] | None = None
) -> Xywh:
    """Return ``(x, y, width, height)`` of the smallest upright box around a rectangle that is rotated about its centre.

    Args:
        x: Left edge before the rotation.
        y: Top edge before the rotation.
        width: Width before the rotation.
        height: Height before the rotation.
        degrees: Angle in degrees. Clockwise and anticlockwise rotations give the same box.
        image: Width and height of the image, if known. The box is clipped to the image: its corners may lie outside
            although the object does not. A box that lies outside as a whole is not clipped.
    """
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    new_width, new_height = width * cos + height * sin, width * sin + height * cos
    left, top = x + (width - new_width) / 2, y + (height - new_height) / 2
    if image is None or left >= image[0] or top >= image[1] or left + new_width <= 0 or top + new_height <= 0:
        return left, top, new_width, new_height
    right, bottom = min(left + new_width, image[0]), min(top + new_height, image[1])
    left, top = max(left, 0.0), max(top, 0.0)
    return left, top, right - left, bottom - top
