"""Walking through nested dicts and lists."""

from collections.abc import Iterator, Sequence
from typing import Any


def dicts(value: Any) -> Iterator[dict]:
    """All dicts inside nested dicts and sequences."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from dicts(item)
