"""Evaluation of any predictor on the test set of a config, by the metric that ``mnv4 test`` uses."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.apis.evaluate import evaluate
from mnv4_mm.config.data import dataset_split, innermost_dataset
from mnv4_mm.engine.building import building
from mnv4_mm.errors import UserError
from mnv4_mm.images import image_size, read_image
from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines
from mnv4_mm.runtime.results import ClassMap, Detections
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import Checkpoint


class PredictorEvaluator:
    """Runs predictors over the test set of a config and computes its metric.

    Args:
        cfg: The config; it is copied.

    Attributes:
        metric: Name of the metric, ``bbox_mAP`` or ``mIoU``.

    Raises:
        UserError: ``test_dataloader`` is not one data set with images and ground truth, or, for detection, it has no
            boxes.
        BuildError: The data set cannot be built.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg = copy.deepcopy(cfg)
        self.task = task_of(cfg)
        self.metric = self.task.metric
        self.task.set_outputs(cfg, dataset_split(cfg, 'test_dataloader'), False, None)
        dataset = innermost_dataset(cfg.test_dataloader.dataset).copy()
        # Only ground truth is loaded here. ``score`` reads the images, and predictors prepare them.
        dataset['pipeline'] = list(self.task.ground_truth_steps)
        dataset['test_mode'] = True
        with (
            without_lines(READING_ANNOTATIONS),
            DefaultScope.overwrite_default_scope(cfg.default_scope),
            building('test_dataloader.dataset'),
        ):
            self.dataset = DATASETS.build(dataset)
        self.task.check_ground_truth(self.dataset.get_data_info(i) for i in range(len(self.dataset)))

    def images(self) -> list[Path]:
        """Return the paths of all images of the test set."""
        return [Path(self.dataset.get_data_info(i)['img_path']) for i in range(len(self.dataset))]

    def score(self, predict: Callable[[Any], Detections | ClassMap], *, reads_files: bool = False) -> float:
        """Evaluate a predictor.

        Args:
            predict: Function from an image, (H, W, 3) uint8 BGR, to detections or a class map.
            reads_files: ``predict`` is given the path of each image instead, and reads the file itself.

        Returns:
            AP or mIoU in [0, 1].

        Raises:
            UserError: An image or mask cannot be read, or there is no value of the metric, see ``metric_value``.
        """
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            evaluator = Evaluator(self.cfg.test_evaluator)
            evaluator.dataset_meta = self.dataset.metainfo
            for i in range(len(self.dataset)):
                info = self.dataset[i]
                path = info['img_path']
                image = path if reads_files else read_image(path)
                size = image_size(path)[::-1] if reads_files else image.shape[:2]
                sample = self.task.evaluation_sample(info, size, predict(image))
                evaluator.process([sample])
            metrics = evaluator.evaluate(len(self.dataset))
        return metric_value(metrics, self.metric)


def baseline_score(cfg: Config, checkpoint: Checkpoint) -> float:
    """Return the AP or mIoU that ``mnv4 test`` measures, in [0, 1].

    Args:
        cfg: Config of the model and the test set. It is not changed.
        checkpoint: The checkpoint to evaluate.

    Raises:
        UserError: The data or the checkpoint do not fit, or there is no value of the metric, see ``metric_value``.
    """
    cfg = Config(cfg.to_dict())
    cfg.log_level = 'WARNING'
    with tempfile.TemporaryDirectory() as folder:
        metrics = evaluate(cfg, checkpoint, work_dir=Path(folder), per_class=False)
    return metric_value(metrics, task_of(cfg).metric)


def metric_value(metrics: Mapping[str, float], name: str) -> float:
    """Select the value of AP or mIoU from the results of an evaluator.

    Args:
        metrics: Values by name, e.g. ``coco/bbox_mAP``. If there are none, because no image has predictions, the value
            is 0.
        name: ``bbox_mAP`` or ``mIoU``.

    Returns:
        The value, in [0, 1].

    Raises:
        UserError: The evaluator computes other metrics, or the data set has no ground truth for this one.
    """
    if not metrics:
        return 0.0
    value = next((float(value) for key, value in metrics.items() if key.endswith(name)), None)
    if value is None:
        raise UserError(f'the test_evaluator of this config computes {", ".join(metrics)}; {name} is needed')
    if not value >= 0:  # NaN, or -1 from COCO: no masks, or only crowd boxes
        raise UserError(f'the test set has no ground truth to compute {name} from')
    return value
