"""Content of the report on a training run, from which ``report.json``, the page and the model card are written.

A value that could not be measured is None; the page and the model card show it as ``not measurable``.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

Points = list[tuple[float, float]]


@dataclass
class Model:
    """The checkpoint that was evaluated.

    Attributes:
        checkpoint: File name of the checkpoint.
        sha256: SHA-256 of the file.
        megabytes: Size of the file in MB (10^6 bytes), including the state of the optimizer if it is stored.
        parameters: Number of parameters of the model.
        step: Training step at which the checkpoint was saved, e.g. ``epoch 12`` or ``iteration 4000``.
        is_best: True if the checkpoint was selected by its score on the validation images.
        config: Name of the config.
        head: Type of the head.
        backbone: Type and net of the backbone, e.g. ``MobileNetV4 conv_s``.
        input_size: Height and width of the test input in pixels; None if it depends on the image.
    """

    checkpoint: str
    sha256: str
    megabytes: float
    parameters: int
    step: str
    is_best: bool
    config: str
    head: str
    backbone: str
    input_size: tuple[int, int] | None = None


@dataclass
class ClassResult:
    """Results of a class.

    Attributes:
        name: Name of the class.
        train: Number of boxes or pixels in the training images; None if they were not counted.
        val: Number of boxes or pixels in the validation images.
        scores: Metrics in [0, 1] by name, the main one (AP or IoU) first; a metric is None if it is not measurable.
    """

    name: str
    train: int | None
    val: int
    scores: dict[str, float | None]


@dataclass
class Confusion:
    """Confusion matrix.

    Attributes:
        names: Class names, for detection followed by ``background``.
        counts: Number of boxes or pixels, with the ground truth in rows and the predictions in columns.
        rule: Sentence for the reader on how boxes or pixels were counted.
    """

    names: list[str]
    counts: list[list[int]]
    rule: str

    def mistakes(self, limit: int = 10) -> list[tuple[str, str, int]]:
        """Return the most frequent mistakes.

        Args:
            limit: Maximum number of mistakes.

        Returns:
            (class of the ground truth, predicted class, count) for each mistake, in descending order of counts.
        """
        cells = [
            (self.names[i], self.names[j], count)
            for i, row in enumerate(self.counts)
            for j, count in enumerate(row)
            if i != j and count
        ]
        return sorted(cells, key=lambda cell: -cell[2])[:limit]


@dataclass
class Example:
    """An evaluated image, drawn with the ground truth on the left and the predictions on the right.

    Attributes:
        kind: ``best`` or ``worst``.
        name: Path of the image relative to the folder of the images.
        result: Result in words, for example ``mean IoU 0.512``.
        image: Path of the drawing relative to the folder of the report.
        legend: Name and RGB colour of the classes that are drawn.
    """

    kind: str
    name: str
    result: str
    image: str
    legend: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)


@dataclass
class SplitSummary:
    """A split of the data.

    Attributes:
        name: ``training`` or ``validation``.
        images: Number of images.
        objects: Number of boxes, without groups (crowds); None for segmentation.
        empty: Number of images without boxes; None for segmentation.
        sizes: Number of boxes by COCO's size: ``small`` (area below 32^2 pixels), ``medium`` and ``large`` (from 96^2).
    """

    name: str
    images: int
    objects: int | None = None
    empty: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass
class FindingGroup:
    """Findings of one kind from the check of the data.

    Attributes:
        rule: ``harmless``, ``dropped`` or ``fatal``.
        kind: Name of the kind.
        count: Number of findings.
        remedy: What was done about findings of this kind, or what the user should do.
        first: Description of the first finding.
    """

    rule: str
    kind: str
    count: int
    remedy: str
    first: str


@dataclass
class DataSummary:
    """The data of the run.

    Attributes:
        folder: Folder of the data set or, if the config names the files itself, of the evaluated images.
        format: Name of the format; empty if the config names the files itself.
        splits: The splits.
        notes: Sentences on how the data was read and what is trained on.
        left_out: (left out, found) by unit such as images or boxes: how many the check left out, and how many it found.
        findings: Findings of the check. None if the data was not checked for this report.
    """

    folder: str
    format: str
    splits: list[SplitSummary]
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)
    findings: list[FindingGroup] | None = None


@dataclass
class Export:
    """An exported file.

    Attributes:
        file: Name of the file.
        target: Name of the runtime; empty if the metadata of the file cannot be read.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; empty if the metadata of the file cannot be read.
        input_size: Height and width of the input in pixels; None if dynamic.
        megabytes: Size of all files of the export in MB (10^6 bytes).
        metric: AP or mIoU; None if the file was not compared with PyTorch.
        to_pytorch: Difference of the metric from PyTorch's; None if the file was not compared.
        latency: Median latencies in ms, with one thread and with all threads; None if they were not measured.
        verdict: Verdict of the comparison, or the reason why the metadata cannot be read; empty without a comparison.
    """

    file: str
    target: str
    precision: str
    input_size: tuple[int, int] | None
    megabytes: float
    metric: float | None = None
    to_pytorch: float | None = None
    latency: tuple[float, float] | None = None
    verdict: str = ''


@dataclass
class Report:
    """Report on a training run.

    Attributes:
        title: Name of the run.
        task: ``detection`` or ``segmentation``.
        created: Date and time, UTC.
        model: The checkpoint.
        metric: Name of the main metric, ``bbox_mAP`` or ``mIoU``.
        value: Value of the main metric on the validation images.
        trained_on: Value of the main metric on the training images; None if it was not measured.
        metrics: Overall metrics on the validation images, by name.
        losses: Points (step, value) of each training loss, by name.
        validation: Points (epoch or iteration, value) of each validation metric during training, by name.
        unit: Unit of the horizontal axis of ``validation``: ``epoch`` or ``iteration``.
        classes: Results per class.
        precision_recall: Points (recall, precision) at IoU 0.5, by class name; empty for segmentation.
        threshold: Score threshold with the best F1 at IoU 0.5 over all boxes; None for segmentation, or if no detection
            is correct.
        confusion: Confusion matrix.
        examples: Best and worst images.
        data: The data.
        exports: Exported files.
        versions: Versions by package.
        commands: Pairs of purpose and command.
        notes: Sentences on how to interpret the numbers.
    """

    title: str
    task: str
    created: str
    model: Model
    metric: str
    value: float | None
    trained_on: float | None
    metrics: dict[str, float | None]
    losses: dict[str, Points]
    validation: dict[str, Points]
    unit: str
    classes: list[ClassResult]
    precision_recall: dict[str, Points]
    threshold: float | None
    confusion: Confusion
    examples: list[Example]
    data: DataSummary
    exports: list[Export]
    versions: dict[str, str]
    commands: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False, ensure_ascii=False)


def measured(value: Any) -> float | None:
    """Return a metric as a float; None if it cannot be measured.

    Args:
        value: A Python or numpy number. Numbers that are not finite or are negative, such as COCO's -1 for missing
            ground truth, mean that the metric cannot be measured.
    """
    return float(value) if math.isfinite(value) and value >= 0 else None
