"""COCO AP as pycocotools counts it, by faster-coco-eval's C++, and not rounded."""

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

from mnv4_mm.errors import UserError
from mnv4_mm.quiet import MISSING_OPTIONAL, without_lines

with without_lines(MISSING_OPTIONAL):
    from mmdet.evaluation import CocoMetric


class Number(NamedTuple):
    """What one of COCO's twelve numbers is the mean of.

    Attributes:
        of: ``precision`` or ``recall``.
        limit: Which of ``proposal_nums`` bounds the detections a picture; None for 100, whatever they are.
        iou: The one IoU threshold it is for; all if None.
        area: Place in pycocotools' areas: all, small, medium, large.
    """

    of: str
    limit: int | None = 2
    iou: float | None = None
    area: int = 0


NUMBERS = {  # mmdet's names, in pycocotools' order; they say 100, 300 and 1000 whatever ``proposal_nums`` are
    'mAP': Number('precision', limit=None),
    'mAP_50': Number('precision', iou=0.5),
    'mAP_75': Number('precision', iou=0.75),
    'mAP_s': Number('precision', area=1),
    'mAP_m': Number('precision', area=2),
    'mAP_l': Number('precision', area=3),
    'AR@100': Number('recall', limit=0),
    'AR@300': Number('recall', limit=1),
    'AR@1000': Number('recall'),
    'AR_s@1000': Number('recall', area=1),
    'AR_m@1000': Number('recall', area=2),
    'AR_l@1000': Number('recall', area=3),
}
PRECISIONS = [name for name, number in NUMBERS.items() if number.of == 'precision']
RECALLS = [name for name, number in NUMBERS.items() if number.of == 'recall']


@METRICS.register_module()
class FastCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric``: its options and its names, pycocotools' numbers, a fraction of the time.

    Unlike there, numbers are not rounded, detections are written to disk only if ``outfile_prefix`` says where, and
    AP per class goes by the category's id also where the categories of ``ann_file`` are not sorted by id.

    Args:
        ann_file: Ground truth in COCO's format; made of the data set's annotations if None.
        sort_categories: Sort the categories of ``ann_file`` by id.
        **kwargs: See mmdet's ``CocoMetric``. ``use_mp_eval`` changes nothing: there is no slow part to spread.

    Raises:
        UserError: unknown ``metric_items``, or less than three ``proposal_nums``.
    """

    iou_thrs: np.ndarray
    cat_ids: list[int] | None
    img_ids: list[int] | None

    def __init__(self, ann_file: str | None = None, sort_categories: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.iou_thrs = np.array(self.iou_thrs, dtype=float, ndmin=1)
        unknown = sorted(set(self.metric_items or ()) - NUMBERS.keys())
        if unknown:
            raise UserError(f'metric_items {", ".join(unknown)} unknown: there are {", ".join(NUMBERS)}')
        if len(self.proposal_nums) < 3 and self.metrics != ['proposal_fast']:
            raise UserError(f'proposal_nums {self.proposal_nums}: COCO needs three, as in (100, 300, 1000)')
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = COCO(path)
            if sort_categories:
                self._coco_api.dataset['categories'].sort(key=lambda category: category['id'])
                self._coco_api.createIndex()

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Numbers by mmdet's names, in [0, 1]; -1 where nothing could be found, and NaN for such a class."""
        logger = MMLogger.get_current_instance()
        truths, found = zip(*results, strict=True)
        metrics: dict[str, float] = {}
        with TemporaryDirectory() as folder, _no_garbage_collection():
            if self._coco_api is None:
                self._coco_api = COCO(self.gt_to_coco_json(truths, self.outfile_prefix or f'{folder}/results'))
            if self.cat_ids is None:
                self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
            if self.img_ids is None:
                self.img_ids = self._coco_api.get_img_ids()
            if self.outfile_prefix is not None:
                self.results2json(found, self.outfile_prefix)
            if self.format_only:
                logger.info(f'detections written: {self.outfile_prefix}.*.json')
                return metrics
            for metric in self.metrics:
                if metric == 'proposal_fast':
                    recalls = self.fast_eval_recall(found, self.proposal_nums, self.iou_thrs, logger=logger)
                    metrics |= {f'AR@{n}': float(r) for n, r in zip(self.proposal_nums, recalls, strict=True)}
                    continue
                detections = self.detections(found, masks=metric == 'segm')
                if not detections:
                    logger.error('The testing results of the whole dataset is empty.')  # mmdet's words
                    break
                metrics |= self._evaluate(metric, detections)
        return metrics

    def detections(self, found: Sequence[dict], masks: bool = False) -> list[dict]:
        """What ``results2json`` writes, without the way over the disk.

        Args:
            found: ``img_id``, ``bboxes`` (N, 4) as (x1, y1, x2, y2), ``scores`` and ``labels`` (N,) of each picture,
                and for masks ``masks``, N RLEs, and perhaps ``mask_scores``.
            masks: Give each its ``segmentation``, and no ``bbox``, which would stand for the mask's area.

        Returns:
            ``[{image_id, category_id, score, bbox: [x, y, w, h]}]``.

        Raises:
            UserError: there are no masks.
        """
        if masks and 'masks' not in found[0]:
            raise UserError("metric 'segm' is of masks, and this model predicts none: take metric='bbox'")
        images = np.repeat([one['img_id'] for one in found], [len(one['labels']) for one in found])
        categories = np.asarray(self.cat_ids)[np.concatenate([one['labels'] for one in found])]
        scores = [one.get('mask_scores', one['scores']) if masks else one['scores'] for one in found]
        if masks:
            shapes = [
                dict(mask, counts=mask['counts'].decode() if isinstance(mask['counts'], bytes) else mask['counts'])
                for one in found
                for mask in one['masks']
            ]
        else:
            boxes = np.concatenate([one['bboxes'] for one in found]).astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            shapes = boxes.tolist()
        key = 'segmentation' if masks else 'bbox'
        return [
            {'image_id': image, 'category_id': category, 'score': score, key: shape}
            for image, category, score, shape in zip(
                images.tolist(), categories.tolist(), np.concatenate(scores).tolist(), shapes, strict=True
            )
        ]

    def _evaluate(self, metric: str, detections: list[dict]) -> dict[str, float]:
        kind = 'bbox' if metric == 'proposal' else metric
        evaluation = COCOeval_faster(self._coco_api, self._coco_api.loadRes(detections), kind)
        params = evaluation.params
        params.catIds, params.imgIds = self.cat_ids, self.img_ids
        params.maxDets, params.iouThrs = list(self.proposal_nums), self.iou_thrs
        params.useCats = int(metric != 'proposal')
        evaluation.evaluate()
        evaluation.accumulate()
        # Not its summarize(): that takes mAP at the last of maxDets, pycocotools at 100 detections.
        numbers = {name: _mean(_values(evaluation, number), -1) for name, number in NUMBERS.items()}
        logger = MMLogger.get_current_instance()
        logger.info(f'{metric}: ' + ', '.join(f'{name} {value:.4f}' for name, value in numbers.items()))
        if metric == 'proposal':
            return {name: numbers[name] for name in self.metric_items or RECALLS}
        metrics: dict[str, float] = {}
        if self.classwise:
            # By evaluation.params.catIds, which it sorted. As mmdet: the last of the limits, for mAP too.
            names = [category['name'] for category in self._coco_api.load_cats(params.catIds)]
            columns = {name: _values(evaluation, NUMBERS[name]._replace(limit=-1)) for name in PRECISIONS}
            rows = {
                name: {column: _mean(values[:, :, k], np.nan) for column, values in columns.items()}
                for k, name in enumerate(names)
            }
            logger.info(f'{metric} per class:\n{_table(rows)}')
            metrics |= {f'{name}_precision': row['mAP'] for name, row in rows.items()}
        return metrics | {f'{metric}_{name}': numbers[name] for name in self.metric_items or PRECISIONS}


def _values(evaluation: COCOeval_faster, number: Number) -> np.ndarray:
    """Its part of (IoU, recall, class, area, limit), or without recall, for one area and one limit or none."""
    values, params = evaluation.eval[number.of], evaluation.params
    if number.iou is not None:
        values = values[params.iouThrs == number.iou]
    limit = 100 if number.limit is None else params.maxDets[number.limit]
    return values[..., number.area, [at for at, most in enumerate(params.maxDets) if most == limit]]


def _mean(values: np.ndarray, none: float) -> float:
    """The mean without -1, which stands for 'there is no such object'."""
    known = values[values > -1]
    return float(known.mean()) if known.size else none


def _table(rows: dict[str, dict[str, float]]) -> str:
    table = PrettyTable(['class', *PRECISIONS], align='r')
    table.align['class'] = 'l'
    for name, row in rows.items():
        table.add_row([name, *('absent' if np.isnan(value) else f'{value:.4f}' for value in row.values())])
    return table.get_string()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A million detections hold no cycles; to look for some among them, again and again, is a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
