"""Helpers for nested configs."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec

from mmengine.config import Config

P = ParamSpec('P')


def dicts(value: Any) -> Iterator[dict]:
    """Iterate over all dicts in nested dicts and sequences, including ``value`` itself.

    Each dict is yielded before the dicts that it contains.
    """
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from dicts(item)


def on_copy(step: Callable[Concatenate[Config, P], Config]) -> Callable[Concatenate[Config, P], Config]:
    """Turn a step that modifies its config into one that modifies and returns a copy."""

    @functools.wraps(step)
    def apply(cfg: Config, *args: P.args, **kwargs: P.kwargs) -> Config:
        return step(copy.deepcopy(cfg), *args, **kwargs)

    return apply
