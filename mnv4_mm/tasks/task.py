"""What detection and segmentation do differently, as one interface: a task is a subclass in a file of its own."""

import colorsys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from mmengine.config import Config
from torch import nn


class Split(Protocol):
    """Pictures and what is known about them."""

    @property
    def images(self) -> Path:
        """Folder of the images."""


class Layout(Protocol):
    """A user's data set, recognised."""

    @property
    def root(self) -> Path:
        """Its folder."""

    @property
    def train(self) -> Any:
        """Training split."""

    @property
    def val(self) -> Any:
        """Validation split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of labels."""


class Frame(NamedTuple):
    """A picture to look at: its file name in the results, and (H, W, 3) uint8 BGR pixels."""

    name: str
    pixels: np.ndarray


class Results(ABC):
    """What a model finds in the pictures of one call of ``infer``."""

    @abstractmethod
    def add(self, frame: Frame) -> np.ndarray:
        """Runs the model on a picture, keeps what it finds, and returns it drawn, (H', W', 3) uint8 BGR."""

    @abstractmethod
    def save(self) -> Path:
        """Writes what was found over all pictures as JSON; returns its path."""


SplitT = TypeVar('SplitT', bound=Split)
LayoutT = TypeVar('LayoutT', bound=Layout)


class Task(ABC, Generic[SplitT, LayoutT]):
    """A task.

    Attributes:
        metric: Name of the number that counts, as the evaluator gives it.
        benchmark: The public data set its configs are for.
        hint: What a user can do who does not have it.
    """

    metric: str
    benchmark: str
    hint: str

    @abstractmethod
    def find(self, root: str) -> LayoutT:
        """Recognises and checks the data set of ``--data``."""

    @abstractmethod
    def split(self, dataset: Any) -> SplitT | None:
        """The split that a data set's config names; None if it is not of the kind these tools know."""

    @abstractmethod
    def set_split(self, dataset: Any, split: SplitT) -> None:
        """Points a data set's config at a split."""

    @abstractmethod
    def set_classes(self, dataset: Any, layout: LayoutT) -> None:
        """Gives a data set's config the classes of a user's data."""

    @abstractmethod
    def set_truth(self, evaluator: Any, split: SplitT) -> None:
        """Points an evaluator's config at the truth of a split, if it reads one by itself."""

    @abstractmethod
    def check(self, split: SplitT, cfg: Config, dataset: Any) -> None:
        """Checks that a split is there and fit for training and evaluation."""

    @abstractmethod
    def check_out(self, out: str) -> None:
        """Checks the name of a place for predictions, before anything is read."""

    @abstractmethod
    def set_outputs(self, cfg: Config, split: SplitT, per_class: bool, out: str | None) -> None:
        """Prepares a test's config for a score per class, and for writing predictions to ``out``."""

    @abstractmethod
    def finish_outputs(self, out: str) -> None:
        """Called when the predictions have been written."""

    @abstractmethod
    def results(self, model: nn.Module, out_dir: Path, score_thr: float) -> Results:
        """Where ``infer`` puts what it finds."""


def palette(count: int) -> list[tuple[int, int, int]]:
    """A colour (RGB, 0 to 255) for each of ``count`` classes, all round the colour wheel."""
    colours = [colorsys.hsv_to_rgb(i / count, 0.8, 0.9) for i in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]
