"""Pareto fronts of points with a cost and a score."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points on the Pareto front, which no other point dominates.

    Args:
        points: Pairs (cost, score). A lower cost and a higher score are better.

    Returns:
        Indices of the points on the front, the lowest cost first. Of points with equal scores, only the cheapest one;
        of equal points, the first one.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front
