"""Helpers for nested configs."""

import copy
import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from mmengine.config import Config

P = ParamSpec('P')


def on_copy(step: Callable[Concatenate[Config, P], Config]) -> Callable[Concatenate[Config, P], Config]:
    """Turn a step that modifies its config into one that modifies and returns a copy."""

    @functools.wraps(step)
    def apply(cfg: Config, *args: P.args, **kwargs: P.kwargs) -> Config:
        return step(copy.deepcopy(cfg), *args, **kwargs)

    return apply
