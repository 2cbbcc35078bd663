"""What detection and segmentation do differently, as one interface: a task is a subclass in a file of its own."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from mmengine.config import Config
from torch import nn

from mnv4_mm.runtime.results import ClassMap, Detections


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


class Predictor(Protocol):
    """A model with its preprocessing."""

    classes: tuple[str, ...]

    def __call__(self, image: np.ndarray) -> Detections | ClassMap:
        """Detect or segment in (H, W, 3) uint8 BGR."""


SplitT = TypeVar('SplitT', bound=Split)
LayoutT = TypeVar('LayoutT', bound=Layout)


class Task(ABC, Generic[SplitT, LayoutT]):
    """A task.

    Attributes:
        name: ``detection`` or ``segmentation``, as in ``runtime.meta.Meta.task``.
        metric: Name of the number that counts, as the evaluator gives it.
        benchmark: The public data set its configs are for.
        hint: What a user can do who does not have it.
    """

    name: str
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
    def predictor(self, model: nn.Module) -> Predictor:
        """Return a predictor for a model that ``apis.model.load_model`` returned."""
