"""What detection and segmentation do differently, as one interface: a task is a subclass in a file of its own."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from mmengine.config import Config
from torch import nn

from mnv4_mm.runtime.results import ClassMap, Detections


class Split(Protocol):
    """Pictures and what is known about them."""

    @property
    def pictures(self) -> Path:
        """Folder of the pictures."""


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
        raw_output: Kind of an exported file whose outputs are those of the net, see ``runtime.meta.Kind``.
        ground_truth_steps: Pipeline that loads the ground truth of an image, and nothing else.
        metric: Name of the number that counts, as the evaluator gives it.
        benchmark: The public data set its configs are for.
        hint: What a user can do who does not have it.
    """

    name: str
    metric: str
    raw_output: Literal['raw', 'logits']
    ground_truth_steps: Sequence[dict[str, Any]]
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
    def check_ground_truth(self, infos: Iterable[Mapping[str, Any]]) -> None:
        """Check that a data set has ground truth to compute the metric with.

        Args:
            infos: Data information of each image, as mmengine's ``BaseDataset.get_data_info`` returns it.

        Raises:
            UserError: There is none.
        """

    @abstractmethod
    def evaluation_sample(self, info: Mapping[str, Any], size: tuple[int, int], prediction: Any) -> dict[str, Any]:
        """Return the sample from which an evaluator compares a prediction with the ground truth.

        Args:
            info: Item of a data set with ``ground_truth_steps`` as its pipeline.
            size: Height and width of the image in pixels.
            prediction: ``Detections`` or ``ClassMap`` of ``runtime.results``.
        """

    @abstractmethod
    def export_size(self, cfg: Config, size: tuple[int, int]) -> tuple[int, int]:
        """Return the default input size of an exported file, (height, width), if images keep their aspect ratio.

        Args:
            cfg: Config of the model.
            size: Size to which the test pipeline fits an image.
        """

    @abstractmethod
    def prepare_mmdeploy(self, cfg: Config) -> None:
        """Prepare a model's config for export with mmdeploy.

        Raises:
            UserError: mmdeploy cannot export it.
        """

    @abstractmethod
    def predictor(self, model: nn.Module) -> Predictor:
        """Return a predictor for a model that ``apis.model.load_model`` returned."""
