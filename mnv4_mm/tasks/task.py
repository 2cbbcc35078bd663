"""Interface of a task: everything that differs between detection and segmentation."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from mmengine.config import Config
from torch import nn

from mnv4_mm.data.checked import CheckedData
from mnv4_mm.images import IMAGE_SUFFIXES
from mnv4_mm.runtime.results import ClassMap, Detections


class Split(Protocol):
    """Images and their ground truth."""

    @property
    def images(self) -> Path:
        """Folder of the images."""

    def __iter__(self) -> Iterator[Any]:
        """Files, folders and settings of the split."""


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

    @property
    def checked(self) -> CheckedData | None:
        """Result of the check, if there was one."""


class Predictor(Protocol):
    """A model with its preprocessing."""

    classes: tuple[str, ...]

    def __call__(self, image: np.ndarray) -> Detections | ClassMap:
        """Detect objects in an image, or segment it. The image is (H, W, 3) uint8 BGR."""


SplitT = TypeVar('SplitT', bound=Split)
LayoutT = TypeVar('LayoutT', bound=Layout)


class Task(ABC, Generic[SplitT, LayoutT]):
    """Everything that differs by task.

    Attributes:
        name: Name of the task.
        metric: Name of the main metric, as the evaluator returns it.
        benchmark: Public data set of the task's configs.
        hint: Advice for users who do not have the benchmark.
        raw_output: Kind of exported file with the raw outputs of the net, see ``runtime.meta.Kind``.
        ground_truth_steps: Pipeline that loads the ground truth of an image, and nothing else.
    """

    name: str
    metric: str
    benchmark: str
    hint: str
    raw_output: Literal['raw', 'logits']
    ground_truth_steps: Sequence[dict[str, Any]]

    @abstractmethod
    def find(
        self,
        root: str,
        *,
        classes: Sequence[str] | None = None,
        allow_dropped: bool = False,
        previous: Mapping[str, str] | None = None,
    ) -> LayoutT:
        """Recognise, check and prepare the data set of ``--data``.

        Args:
            root: Folder of the data set.
            classes: Class names in the order of a checkpoint; the data set's own order if None.
            allow_dropped: Accept that more than 1 % of the images or boxes are left out.
            previous: Split of an earlier run, image name -> ``train`` or ``val``. It is kept if the data set has no
                split of its own.

        Raises:
            UserError: The data set is missing, invalid, or has other classes than ``classes``.
        """

    @abstractmethod
    def split(self, dataset: Any) -> SplitT | None:
        """Return the split that a data set's config names; None if the task does not support its type."""

    @abstractmethod
    def set_split(self, dataset: Any, split: SplitT) -> None:
        """Set the split of a data set's config."""

    @abstractmethod
    def set_classes(self, dataset: Any, layout: LayoutT) -> None:
        """Set the classes of a user's data in a data set's config."""

    @abstractmethod
    def count_images(self, split: SplitT) -> int:
        """Return the number of images of a split."""

    @abstractmethod
    def check_label_order(self, cfg: Config, dataset: Any) -> None:
        """Make sure that the labels of a data set's config follow its class names.

        Raises:
            UserError: The ground truth has no entry for a class.
        """

    @abstractmethod
    def set_class_order(self, cfg: Config, dataset: Any, old: Sequence[str], new: Sequence[str]) -> None:
        """Change the order of the classes in a data set's config, and of its labels with it.

        Args:
            cfg: The config that the data set is part of.
            dataset: Config of the data set.
            old: Class names in the order of labels.
            new: The same names in the order to use.

        Raises:
            UserError: A data set of this class cannot be reordered.
        """

    @abstractmethod
    def set_ground_truth(self, evaluator: Any, split: SplitT) -> None:
        """Set the ground truth of a split in an evaluator's config, if the evaluator reads it from a file."""

    @abstractmethod
    def set_inference(self, cfg: Config, mode: str) -> None:
        """Set the inference mode of a config, ``whole`` or ``slide``; see ``config.data.set_inference``.

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
            UserError: The split is missing or invalid. The message lists the first mistakes.
        """

    def data_paths(self, split: SplitT) -> list[Path]:
        """Return the files and folders of a split, in which nothing may be written."""
        return [part for part in split if isinstance(part, Path)]

    def image_files(self, split: SplitT) -> list[Path]:
        """Return the image files of a split; empty if its folder does not exist."""
        return sorted(path for path in split.images.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)

    def training_lines(self, split: SplitT, cfg: Config, dataset: Any) -> list[str]:
        """Describe the data that is trained on, as lines of text.

        Args:
            split: Training split; its files have been checked.
            cfg: The config.
            dataset: Config of the training data set.

        Raises:
            UserError: Nothing is left to train on.
        """
        return []

    @abstractmethod
    def check_out(self, out: str) -> None:
        """Check the name of the file or folder for predictions, before anything is read.

        Raises:
            UserError: Predictions cannot be written there.
        """

    @abstractmethod
    def set_outputs(self, cfg: Config, split: SplitT, per_class: bool, out: str | None) -> None:
        """Prepare a test's config for drawing, for metrics per class, and for writing predictions.

        Args:
            cfg: The config; changed in place.
            split: Split that is tested.
            per_class: Print the metrics of each class.
            out: File or folder for predictions, whose folder is made; None to write none.

        Raises:
            UserError: ``out`` would overwrite the data.
        """

    @abstractmethod
    def finish_outputs(self, out: str) -> None:
        """Finish the output after the predictions have been written."""

    @abstractmethod
    def check_ground_truth(self, infos: Iterable[Mapping[str, Any]]) -> None:
        """Check that a data set has ground truth to compute the metric with.

        Args:
            infos: Data information of each image, as mmengine's ``BaseDataset.get_data_info`` returns it.

        Raises:
            UserError: There is no ground truth.
        """

    @abstractmethod
    def evaluation_sample(self, info: Mapping[str, Any], size: tuple[int, int], prediction: Any) -> dict[str, Any]:
        """Return the data sample with prediction and ground truth that an evaluator takes.

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
            size: Size to which the test pipeline fits an image, (height, width).
        """

    @abstractmethod
    def prepare_mmdeploy(self, cfg: Config) -> None:
        """Prepare a model's config for export with mmdeploy.

        Raises:
            UserError: mmdeploy cannot export the model.
        """

    @abstractmethod
    def predictor(self, model: nn.Module) -> Predictor:
        """Return a predictor for a model that ``apis.model.load_model`` returned."""
