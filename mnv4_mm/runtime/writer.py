"""Files with the predictions for a set of images: ``predictions.json``, ``coco_results.json`` and class maps."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from mnv4_mm.files import write_whole
from mnv4_mm.images import IMAGE_SUFFIXES, write_mask
from mnv4_mm.runtime.results import ClassMap, Detections

CLASS_MAPS = Path('class_maps')
ResultT = TypeVar('ResultT', Detections, ClassMap)


class PredictionWriter(ABC, Generic[ResultT]):
    """Base class of the writers that collect the predictions of one call of ``infer``.

    Args:
        out_dir: Folder to write to.
        score_thr: Boxes with lower scores are written but not drawn.
        coco: Also write ``coco_results.json``: the predictions as a list in COCO's results format, which ``loadRes`` of
            pycocotools reads.
    """

    def __init__(self, out_dir: Path, score_thr: float = 0.3, coco: bool = False) -> None:
        self.out_dir = out_dir
        self.score_thr = score_thr
        self.images: list[dict[str, Any]] = []
        self.unreadable: list[dict[str, str]] = []
        self.results: list[dict[str, Any]] | None = [] if coco else None

    def add(self, name: str, result: ResultT, image_id: int | None = None) -> np.ndarray:
        """Add the predictions for an image.

        Args:
            name: File name of the image, or name of the frame of a video.
            result: The predictions, including their image.
            image_id: Id of the image; None to number the images from 1.

        Returns:
            The image with the predictions drawn, (H', W', 3) uint8 BGR.

        Raises:
            UserError: A class map cannot be written, or its COCO results need pycocotools, which is not installed.
        """
        image_id = len(self.images) + 1 if image_id is None else image_id
        if self.results is not None:
            self.results += result.to_coco(image_id)
        return self._add(name, result, image_id)

    def add_unreadable(self, name: str, reason: str) -> None:
        """Add an image that cannot be read, and the reason."""
        self.unreadable.append(dict(file_name=name, reason=reason))

    @abstractmethod
    def _add(self, name: str, result: ResultT, image_id: int) -> np.ndarray:
        """Add the predictions for an image to ``content``, and draw them; see ``add``."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return the content of ``predictions.json``, without the images that cannot be read."""

    def save(self) -> Path:
        """Write ``predictions.json`` and, if ``coco`` is True, ``coco_results.json``.

        Returns:
            The path of ``predictions.json``.

        Raises:
            UserError: A file cannot be written.
        """
        if self.results is not None:
            write_whole(self.out_dir / 'coco_results.json', json.dumps(self.results))
        path = self.out_dir / 'predictions.json'
        content = self.content() | (dict(unreadable=self.unreadable) if self.unreadable else {})
        write_whole(path, json.dumps(content))
        return path


class DetectionWriter(PredictionWriter[Detections]):
    """Writes ``predictions.json`` as a COCO data set whose annotations have a ``score``.

    Boxes are [x, y, width, height] in pixels of the image. All detections are written, not only those drawn.
    """

    def __init__(self, out_dir: Path, score_thr: float = 0.3, coco: bool = False) -> None:
        super().__init__(out_dir, score_thr, coco)
        self.annotations: list[dict[str, Any]] = []
        self.categories: list[dict[str, Any]] = []

    def _add(self, name: str, result: Detections, image_id: int) -> np.ndarray:
        drawn = result.plot(score_thr=self.score_thr)
        height, width = drawn.shape[:2]
        self.images.append(dict(id=image_id, file_name=name, width=width, height=height))
        for row in result.to_coco(image_id):
            _, _, box_width, box_height = row['bbox']
            number = len(self.annotations) + 1
            self.annotations.append(dict(row, id=number, area=box_width * box_height, iscrowd=0))
        ids = result.category_ids or range(1, len(result.classes) + 1)
        self.categories = [dict(id=number, name=name) for number, name in zip(ids, result.classes, strict=True)]
        return drawn

    def content(self) -> dict[str, Any]:
        return dict(images=self.images, annotations=self.annotations, categories=self.categories)


class ClassMapWriter(PredictionWriter[ClassMap]):
    """Writes class maps as PNG files into ``class_maps/``, and ``predictions.json``.

    Each PNG is written as soon as its class map is added. Its pixel values are the same as in the masks of the training
    data. The JSON lists the value of each class and, for each image, the path of its class map and the share of pixels
    of each class that occurs.
    """

    def __init__(self, out_dir: Path, score_thr: float = 0.3, coco: bool = False) -> None:
        super().__init__(out_dir, score_thr, coco)
        self.values: dict[str, int] = {}
        self.paths: set[Path] = set()

    def _add(self, name: str, result: ClassMap, image_id: int) -> np.ndarray:
        path = self._path(Path(name))
        write_class_map(self.out_dir / path, result)
        labels = result.class_map
        counts = np.bincount(labels.ravel(), minlength=len(result.classes))
        order = [i for i in np.argsort(-counts, kind='stable') if counts[i]]
        share = {result.classes[i]: float(counts[i] / labels.size) for i in order}
        self.images.append(dict(id=image_id, file_name=name, class_map=path.as_posix(), share=share))
        self.values = {name: value for value, name in enumerate(result.classes, result.first_value)}
        return result.plot()

    def _path(self, image: Path) -> Path:
        """Return ``class_maps/b/a.png`` for ``b/a.jpg``; ``class_maps/b/a.jpg.png`` if that is taken, or for frames."""
        path = CLASS_MAPS / image.with_suffix('.png')
        if image.suffix.lower() not in IMAGE_SUFFIXES or path in self.paths:
            path = CLASS_MAPS / image.with_name(f'{image.name}.png')
        self.paths.add(path)
        return path

    def content(self) -> dict[str, Any]:
        return dict(values=self.values, images=self.images)


def write_class_map(path: Path, result: ClassMap) -> None:
    """Write a class map as a palette PNG: pixel values as in the masks of the data set, shown in class colours.

    If the classes need values above 255, the PNG is 16-bit greyscale without colours instead.

    Args:
        path: The PNG file.
        result: The class map.

    Raises:
        UserError: The file cannot be written.
    """
    first = result.first_value
    palette = [(0, 0, 0)] * first + [tuple(colour) for colour in result.colours]
    write_mask(path, result.class_map.astype(np.int32) + first, palette)


WRITERS: dict[str, type[PredictionWriter]] = {'detection': DetectionWriter, 'segmentation': ClassMapWriter}
