"""Interface of a task: everything that differs between detection and segmentation."""

import colorsys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from mmengine.config import Config
from torch import nn


class Split(Protocol):
    """Images and their ground truth."""

    @property
    def pictures(self) -> Path:
        """Folder of the images."""


class Layout(Protocol):
    """A user's data set, as recognised."""

    @property
    def root(self) -> Path:
        """Folder of the data set."""

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
    """Everything that differs by task.

    Attributes:
        name: Name of the task.
        metric: Name of the main metric, as the evaluator returns it.
        benchmark: Public data set of the task's configs.
        hint: Advice for users who do not have that data set.
        raw_output: Kind of an exported file whose outputs are those of the net, see ``runtime.meta.Kind``.
    """

    name: str
    metric: str
    benchmark: str
    hint: str
    raw_output: Literal['raw', 'logits']

    @abstractmethod
    def find(self, root: str) -> LayoutT:
        """Recognise and check the data set of ``--data``.

        Raises:
            UserError: Something is missing or invalid.
        """

    @abstractmethod
    def split(self, dataset: Any) -> SplitT | None:
        """Return the split that a data set's config names; None if the data set is not of the kind of this task."""

    @abstractmethod
    def set_split(self, dataset: Any, split: SplitT) -> None:
        """Set the split of a data set's config."""

    @abstractmethod
    def set_classes(self, dataset: Any, layout: LayoutT) -> None:
        """Set the classes of a user's data in a data set's config."""

    @abstractmethod
    def set_ground_truth(self, evaluator: Any, split: SplitT) -> None:
        """Set the ground truth of a split in an evaluator's config, if the evaluator reads it from a file."""

    @abstractmethod
    def set_inference(self, cfg: Config, mode: str) -> None:
        """Set the inference mode, ``whole`` or ``slide``.

        Raises:
            UserError: The task or the config has no such mode.
        """

    @abstractmethod
    def set_one_size(self, cfg: Config, size: tuple[int, int]) -> None:
        """Prepare a config for a net that takes images of one size only, (height, width) in pixels."""

    @abstractmethod
    def check(self, split: SplitT, cfg: Config, dataset: Any) -> None:
        """Check that a split is there and fit for training and evaluation.

        Raises:
            UserError: Names the first mistakes.
        """

    @abstractmethod
    def check_out(self, out: str) -> None:
        """Check the name of the file or folder for predictions, before anything is read.

        Raises:
            UserError: It cannot hold the predictions.
        """

    @abstractmethod
    def set_outputs(self, cfg: Config, split: SplitT, per_class: bool, out: str | None) -> None:
        """Prepare a test's config for metrics per class, and for writing predictions to ``out``.

        Raises:
            UserError: ``out`` would overwrite the data.
        """

    @abstractmethod
    def finish_outputs(self, out: str) -> None:
        """Finish the output after the predictions have been written."""

    @property
    @abstractmethod
    def ground_truth_pipeline(self) -> list[dict[str, Any]]:
        """Steps of a data set's pipeline that load the ground truth of an image, and not the image."""

    @abstractmethod
    def check_ground_truth(self, dataset: Any) -> None:
        """Check that a data set has ground truth to compute ``metric`` from.

        Args:
            dataset: A data set, as mmdet or mmseg builds it.

        Raises:
            UserError: It has none.
        """

    @abstractmethod
    def evaluation_sample(self, info: dict[str, Any], size: tuple[int, int], prediction: Any) -> dict[str, Any]:
        """Return the sample from which an evaluator of this task compares a prediction with the ground truth.

        Args:
            info: Item of a data set with ``ground_truth_pipeline``.
            size: Height and width of the image in pixels.
            prediction: ``runtime.results.Detections`` or ``ClassMap`` of the image.
        """

    @abstractmethod
    def results(self, model: nn.Module, out_dir: Path, score_thr: float) -> Results:
        """Return the collector of the predictions of one call of ``infer``."""

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


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return a colour (RGB, 0 to 255) for each of ``count`` classes, evenly spaced on the colour wheel."""
    colours = [colorsys.hsv_to_rgb(i / count, 0.8, 0.9) for i in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]
