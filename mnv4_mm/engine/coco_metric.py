"""COCO metrics with the results of pycocotools, computed by faster-coco-eval's C++ and not rounded."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from prettytable import PrettyTable

from mnv4_mm.data.coco_dataset import order_by_name
from mnv4_mm.engine.ground_truth import read_ground_truth
from mnv4_mm.errors import UserError
from mnv4_mm.quiet import MISSING_OPTIONAL, without_lines

with without_lines(MISSING_OPTIONAL):
    from mmdet.evaluation import CocoMetric


class Statistic(NamedTuple):
    """Selection of entries of pycocotools' result arrays, whose mean is one of COCO's twelve statistics.

    Attributes:
        quantity: ``precision`` or ``recall``.
        limit: Index in ``proposal_nums`` of the maximum number of detections per image; None for a
            maximum of 100, at whatever index it is.
        iou: IoU threshold; None for all thresholds.
        area: Index of the object size in pycocotools: 0 for all, 1 for small, 2 for medium, 3 for large objects.
    """

    quantity: str
    limit: int | None = 2
    iou: float | None = None
    area: int = 0


# In pycocotools' order, by mmdet's names, which contain 100, 300 and 1000 whatever ``proposal_nums`` is.
STATISTICS = {
    'mAP': Statistic('precision', limit=None),
    'mAP_50': Statistic('precision', iou=0.5),
    'mAP_75': Statistic('precision', iou=0.75),
    'mAP_s': Statistic('precision', area=1),
    'mAP_m': Statistic('precision', area=2),
    'mAP_l': Statistic('precision', area=3),
    'AR@100': Statistic('recall', limit=0),
    'AR@300': Statistic('recall', limit=1),
    'AR@1000': Statistic('recall'),
    'AR_s@1000': Statistic('recall', area=1),
    'AR_m@1000': Statistic('recall', area=2),
    'AR_l@1000': Statistic('recall', area=3),
}
PRECISIONS = [name for name, statistic in STATISTICS.items() if statistic.quantity == 'precision']
RECALLS = [name for name, statistic in STATISTICS.items() if statistic.quantity == 'recall']


@METRICS.register_module()
class FastCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric``, computed by faster-coco-eval with the results of pycocotools in a fraction of the time.

    Options and names of metrics are mmdet's. There are five differences:

    - Metrics are not rounded.
    - Detections are written to disk only if ``outfile_prefix`` is set.
    - AP per class belongs to the right class even if the categories of ``ann_file`` are not sorted by id.
    - Ids of annotations do not matter. pycocotools takes a box with the id 0 for missed, even if it is found.
    - AP is 0 if there are no detections in any image. mmdet returns no metrics then.

    Args:
        ann_file: Path of a JSON file with the ground truth in COCO's format; None to use the annotations in the data
            samples.
        sort_categories: Whether to sort the categories of ``ann_file`` by id before labels are assigned to them. This
            is needed for mmdet's ``Objects365V1Dataset``, which sorts its categories as well. The argument has no
            effect without ``ann_file``, or with ``named_labels``.
        named_labels: Whether labels are indices into the class names of the data set, as in ``NamedCocoDataset``. By
            default, labels follow the order of the categories in ``ann_file``, as in mmdet.
        **kwargs: See mmdet's ``CocoMetric``. ``use_mp_eval`` has no effect.

    Raises:
        UserError: ``metric_items`` has unknown names, or ``proposal_nums`` has fewer than three numbers. With
            ``proposal_fast`` as the only metric, fewer numbers are allowed.
    """

    iou_thrs: np.ndarray
    cat_ids: list[int] | None
    img_ids: list[int] | None

    def __init__(
        self, ann_file: str | None = None, sort_categories: bool = False, named_labels: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.named_labels = named_labels
        self.iou_thrs = np.array(self.iou_thrs, dtype=float, ndmin=1)
        unknown = sorted(set(self.metric_items or ()) - STATISTICS.keys())
        if unknown:
            raise UserError(f'unknown metric_items {", ".join(unknown)}: expected some of {", ".join(STATISTICS)}')
        if len(self.proposal_nums) < 3 and self.metrics != ['proposal_fast']:
            raise UserError(f'proposal_nums must be three numbers, such as (100, 300, 1000), got {self.proposal_nums}')
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = read_ground_truth(path)
            if sort_categories:
                self._coco_api.dataset['categories'].sort(key=lambda category: category['id'])
                self._coco_api.createIndex()

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics of all images.

        Args:
            results: A pair for each image, ground truth and prediction, as ``process`` of mmdet's ``CocoMetric``
                stores them.

        Returns:
            Metrics in [0, 1] by mmdet's names. A metric without ground truth, e.g. for an object size that does not
                occur, is -1. ``mAP`` is also -1 if ``proposal_nums`` does not contain 100. AP of a class without ground
                truth is NaN. With ``format_only``, the dict is empty, because detections are only written to disk.

        Raises:
            UserError: The metric is ``segm``, but the model predicts no masks.
        """
        logger = MMLogger.get_current_instance()
        ground_truths, predictions = zip(*results, strict=True)
        metrics: dict[str, float] = {}
        with TemporaryDirectory() as folder, _no_garbage_collection():
            if self._coco_api is None:
                self._coco_api = COCO(self.gt_to_coco_json(ground_truths, self.outfile_prefix or f'{folder}/results'))
            if self.cat_ids is None:
                self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
                if self.named_labels:
                    self.cat_ids = order_by_name(self.cat_ids, self._coco_api.cats, self.dataset_meta['classes'])
            if self.img_ids is None:
                self.img_ids = self._coco_api.get_img_ids()
            if self.outfile_prefix is not None:
                self.results2json(predictions, self.outfile_prefix)
            if self.format_only:
                logger.info(f'detections written to {self.outfile_prefix}.*.json')
                return metrics
            for metric in self.metrics:
                if metric == 'proposal_fast':
                    recalls = self.fast_eval_recall(predictions, self.proposal_nums, self.iou_thrs, logger=logger)
                    metrics |= {f'AR@{n}': float(r) for n, r in zip(self.proposal_nums, recalls, strict=True)}
                    continue
                metrics |= self._evaluate(metric, self.to_coco(predictions, masks=metric == 'segm'))
        return metrics

    def to_coco(self, predictions: Sequence[dict], masks: bool = False) -> list[dict]:
        """Convert predictions to COCO's results format in memory; mmdet's ``results2json`` writes the same to disk.

        The attribute ``cat_ids``, the category id of each label, must have been set, as ``compute_metrics`` does.

        Args:
            predictions: One dict for each of at least one image, with ``img_id``, ``bboxes`` (N, 4) as (x1, y1, x2, y2)
                in pixels, ``scores`` (N,) and ``labels`` (N,). For ``masks``, the dict also needs ``masks``, a list of
                N RLEs, and may have ``mask_scores`` (N,), which are used instead of ``scores``.
            masks: Whether to return masks instead of boxes. If a detection had both, pycocotools would take the area of
                the object from the box.

        Returns:
            A dict ``{image_id, category_id, score, bbox: [x, y, w, h]}`` for each detection. With ``masks``, the dict
                has ``segmentation``, an RLE, in place of ``bbox``.

        Raises:
            UserError: Masks are required, but the model predicts none.
        """
        if masks and 'masks' not in predictions[0]:
            raise UserError("metric='segm' needs masks, but this model predicts none: use metric='bbox'")
        images = np.repeat([image['img_id'] for image in predictions], [len(image['labels']) for image in predictions])
        categories = np.asarray(self.cat_ids)[np.concatenate([image['labels'] for image in predictions])]
        scores = [image.get('mask_scores', image['scores']) if masks else image['scores'] for image in predictions]
        if masks:
            shapes = [
                dict(mask, counts=mask['counts'].decode() if isinstance(mask['counts'], bytes) else mask['counts'])
                for image in predictions
                for mask in image['masks']
            ]
        else:
            boxes = np.concatenate([image['bboxes'] for image in predictions]).astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            shapes = boxes.tolist()
        key = 'segmentation' if masks else 'bbox'
        return [
            {'image_id': image_id, 'category_id': category, 'score': score, key: shape}
            for image_id, category, score, shape in zip(
                images.tolist(), categories.tolist(), np.concatenate(scores).tolist(), shapes, strict=True
            )
        ]

    def _evaluate(self, metric: str, detections: list[dict]) -> dict[str, float]:
        iou_type = 'bbox' if metric == 'proposal' else metric
        if detections:
            found = self._coco_api.loadRes(detections)
        else:  # loadRes takes no empty list
            MMLogger.get_current_instance().warning(f'{metric}: no detections in any image')
            found = COCO(dict(self._coco_api.dataset, annotations=[]))
        evaluation = COCOeval_faster(self._coco_api, found, iou_type)
        params = evaluation.params
        params.catIds, params.imgIds = self.cat_ids, self.img_ids
        params.maxDets, params.iouThrs = list(self.proposal_nums), self.iou_thrs
        params.useCats = int(metric != 'proposal')
        evaluation.evaluate()
        evaluation.accumulate()
        # Not summarize(), which computes mAP with the last of maxDets, whereas pycocotools uses 100 detections.
        values = {name: _mean(_select(evaluation, statistic), -1) for name, statistic in STATISTICS.items()}
        logger = MMLogger.get_current_instance()
        shown = (f'{name} {f"{value:.4f}" if value != -1 else "not measurable"}' for name, value in values.items())
        logger.info(f'{metric}: ' + ', '.join(shown))
        if metric == 'proposal':
            return {name: values[name] for name in self.metric_items or RECALLS}
        metrics: dict[str, float] = {}
        if self.classwise:
            # evaluation.params.catIds has been sorted by id. As in mmdet, mAP per class uses the last of maxDets.
            names = [category['name'] for category in self._coco_api.load_cats(params.catIds)]
            columns = {name: _select(evaluation, STATISTICS[name]._replace(limit=-1)) for name in PRECISIONS}
            rows = {
                name: {column: _mean(array[:, :, k], np.nan) for column, array in columns.items()}
                for k, name in enumerate(names)
            }
            logger.info(f'{metric} per class:\n{_table(rows)}')
            metrics |= {f'{name}_precision': row['mAP'] for name, row in rows.items()}
        return metrics | {f'{metric}_{name}': values[name] for name in self.metric_items or PRECISIONS}


def _select(evaluation: COCOeval_faster, statistic: Statistic) -> np.ndarray:
    """Select the entries of pycocotools' result array whose mean is a statistic.

    Returns:
        (IoU, recall, class, limit) for precision, (IoU, class, limit) for recall. The last axis has length 1, or 0 if
            ``statistic.limit`` is None and ``proposal_nums`` does not contain 100.
    """
    array, params = evaluation.eval[statistic.quantity], evaluation.params
    if statistic.iou is not None:
        array = array[params.iouThrs == statistic.iou]
    limit = 100 if statistic.limit is None else params.maxDets[statistic.limit]
    return array[..., statistic.area, [i for i, max_dets in enumerate(params.maxDets) if max_dets == limit]]


def _mean(values: np.ndarray, default: float) -> float:
    """Return the mean of the values except -1, with which pycocotools marks missing ground truth."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else default


def _table(rows: dict[str, dict[str, float]]) -> str:
    table = PrettyTable(['class', *PRECISIONS], align='r')
    table.align['class'] = 'l'
    for name, row in rows.items():
        table.add_row([name, *('absent' if np.isnan(value) else f'{value:.4f}' for value in row.values())])
    return table.get_string()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector, which takes a quarter of the time for a million detections and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
