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
        """Iterate over the fields of the split: files, folders and settings."""


class Layout(Protocol):
    """A user's data set, as ``Task.find`` returns it."""

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
        """Result of the data check; None if the data set has not been checked."""


class Predictor(Protocol):
    """A model with its preprocessing.

    Attributes:
        classes: Class names in the order of labels.
    """

    classes: tuple[str, ...]

    def __call__(self, image: np.ndarray) -> Detections | ClassMap:
        """Detect objects in an image, or segment it. The image is (H, W, 3) uint8 BGR."""


SplitT = TypeVar('SplitT', bound=Split)
LayoutT = TypeVar('LayoutT', bound=Layout)


class Task(ABC, Generic[SplitT, LayoutT]):
    """Base class of the tasks: everything that differs between detection and segmentation.

    Attributes:
        name: Name of the task.
        metric: Name of the main metric, as the evaluator returns it.
        benchmark: Public data set of the task's configs.
        hint: Advice for users who do not have the benchmark's data.
        raw_output: Kind of exported file whose outputs are not post-processed, see ``runtime.meta.Kind``.
        results: Name of the file or folder that ``mnv4 test --out`` writes for reports and records.
        ground_truth_steps: Pipeline that loads only the ground truth of an image; empty if the annotations of the data
            set contain it.
    """

    name: str
    metric: str
    benchmark: str
    hint: str
    raw_output: Literal['raw', 'logits']
    results: str
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

        Returns:
            The data set with its splits, its classes and the result of the check.

        Raises:
            UserError: The data set is missing, invalid, or has other classes than ``classes``.
        """

    @abstractmethod
    def split(self, dataset: Any) -> SplitT | None:
        """Return the split that a data set's config names; None if the config does not name images and ground truth."""

    @abstractmethod
    def set_split(self, dataset: Any, split: SplitT) -> None:
        """Set the paths of a split in a data set's config."""

    @abstractmethod
    def set_classes(self, dataset: Any, layout: LayoutT) -> None:
        """Set the classes of a user's data in a data set's config."""

    @abstractmethod
    def count_images(self, split: SplitT) -> int:
        """Return the number of images of a split."""

    @abstractmethod
    def check_label_order(self, cfg: Config, dataset: Any) -> None:
        """Make sure that the labels of a data set follow the class names in its config.

        Args:
            cfg: The config that the data set is part of; changed in place if necessary.
            dataset: Config of the data set; changed in place if necessary.

        Raises:
            UserError: The annotation file is invalid, or has no category for a class.
        """

    @abstractmethod
    def set_class_order(self, cfg: Config, dataset: Any, old: Sequence[str], new: Sequence[str]) -> None:
        """Change the order of the classes, and so of the labels, in a data set's config.

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
        """Set the ground truth of a split in an evaluator's config, if the evaluator reads it from a file.

        Raises:
            UserError: The evaluator should read a file and has no ``ann_file``.
        """

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
        """Check that the files of a split exist and are fit for training and evaluation.

        Raises:
            UserError: The split is missing or invalid. The message lists the first mistakes.
        """

    def data_paths(self, split: SplitT) -> list[Path]:
        """Return the files and folders of a split, which outputs must not overwrite."""
        return [part for part in split if isinstance(part, Path)]

    def image_files(self, split: SplitT) -> list[Path]:
        """Return the image files of a split; empty if its folder does not exist."""
        return sorted(path for path in split.images.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)

    def training_lines(self, split: SplitT, cfg: Config, dataset: Any) -> list[str]:
        """Return lines of text that describe the data that is trained on; an empty list if there is nothing to say.

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
        """Check the file or folder for predictions before the data and the model are read.

        Args:
            out: JSON file for detections, or folder for class maps.

        Raises:
            UserError: Predictions cannot be written there.
        """

    @abstractmethod
    def set_outputs(self, cfg: Config, split: SplitT, per_class: bool, out: str | None) -> None:
        """Prepare the config of an evaluation for drawing, for metrics per class, and for writing predictions.

        Args:
            cfg: The config; changed in place.
            split: Split to evaluate on.
            per_class: Print the metrics of each class.
            out: File for detections, whose parent folder is created, or folder for class maps, which is created. None
                writes no predictions.

        Raises:
            UserError: ``out`` would overwrite the data.
        """

    @abstractmethod
    def finish_outputs(self, out: str) -> None:
        """Complete the output after the evaluation has written the predictions.

        The file of detections is renamed to the requested name. For class maps, the path of their folder is printed.

        Args:
            out: The ``out`` that ``set_outputs`` was called with.
        """

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
        """Return the data sample of an image for the evaluator.

        The sample contains the prediction and, for segmentation, the ground truth.

        Args:
            info: Item of a data set with ``ground_truth_steps`` as its pipeline.
            size: Height and width of the image in pixels.
            prediction: ``Detections`` or ``ClassMap`` of ``runtime.results``.
        """

    @abstractmethod
    def export_size(self, cfg: Config, size: tuple[int, int]) -> tuple[int, int]:
        """Return the default input size of an exported file, for a test pipeline that keeps the aspect ratio.

        Args:
            cfg: Config of the model.
            size: Size into which the test pipeline fits an image, (height, width) in pixels.

        Returns:
            (height, width) in pixels, not yet rounded to multiples of 32.
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
