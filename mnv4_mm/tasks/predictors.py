"""Inference with PyTorch models and the pipelines of mmdet and mmseg.

The results have the same types as those of exported files: ``runtime.results.Detections`` and ``ClassMap``.
"""

import copy
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.image.geometric import rescale_size
from mmcv.transforms import Resize
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope

from mnv4_mm.engine.overlay import to_class_map
from mnv4_mm.quiet import MISSING_OPTIONAL, without_lines
from mnv4_mm.runtime.results import ClassMap, Detections

with without_lines(MISSING_OPTIONAL):
    from mmdet.apis import inference_detector
    from mmdet.utils import get_test_pipeline_cfg


class Detector:
    """Object detection with a model of mmdet.

    Args:
        model: A model with ``cfg``, ``dataset_meta`` and ``checkpoint_meta``, as ``apis.model.load_model`` returns.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.classes = tuple(model.dataset_meta['classes'])
        # In the order of labels. Checkpoints of `mnv4 train` carry the category ids of their data set.
        ids = model.checkpoint_meta.get('category_ids')
        self.category_ids = tuple(ids) if ids else None
        self.pipeline = _pipeline(model.cfg, 'mmdet')

    def __call__(self, image: np.ndarray) -> Detections:
        """Detect objects in an image, (H, W, 3) uint8 BGR."""
        with DefaultScope.overwrite_default_scope('mmdet'):
            instances = inference_detector(self.model, image, self.pipeline).pred_instances.cpu().numpy()
        return Detections(
            instances.bboxes.astype(np.float32),
            instances.scores.astype(np.float32),
            instances.labels.astype(np.int64),
            self.classes,
            self.category_ids,
            image,
        )


class Segmenter:
    """Semantic segmentation with a model of mmseg.

    Args:
        model: A model with ``cfg`` and ``dataset_meta``, as ``apis.model.load_model`` returns.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.classes = tuple(model.dataset_meta['classes'])
        self.palette = [tuple(colour) for colour in model.dataset_meta['palette']]
        self.first_value = int(bool(model.dataset_meta.get('reduce_zero_label')))
        self.pipeline = _pipeline(model.cfg, 'mmseg')

    def __call__(self, image: np.ndarray) -> ClassMap:
        """Segment an image, (H, W, 3) uint8 BGR."""
        data = pseudo_collate([self.pipeline(dict(img=image))])
        with torch.no_grad():
            predicted = self.model.test_step(data)[0].pred_sem_seg.data
        labels = to_class_map(predicted, len(self.classes))
        return ClassMap(labels, self.classes, self.palette, self.first_value, image)


def _pipeline(cfg: Config, scope: str) -> Compose:
    """Build the test pipeline of a config for images in memory, without ground truth."""
    steps = copy.deepcopy(get_test_pipeline_cfg(cfg))
    steps = [step for step in steps if not step['type'].endswith('LoadAnnotations')]
    steps[0]['type'] = 'LoadImageFromNDArray'
    with DefaultScope.overwrite_default_scope(scope):
        pipeline = Compose(steps)
    pipeline.transforms = [
        _ResizeToPixels(step) if isinstance(step, Resize) and step.keep_ratio and step.scale else step
        for step in pipeline.transforms
    ]
    return pipeline


class _ResizeToPixels:
    """Resize an image by a step of a pipeline, to sides of at least one pixel, as ``runtime.preprocess`` does.

    mmcv rounds a side of less than half a pixel to 0, and OpenCV fails, e.g. for 4000x2 pixels and a scale of 640x160.
    """

    def __init__(self, step: Resize) -> None:
        self.step = step

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        image = results['img']
        size = rescale_size(image.shape[1::-1], self.step.scale)
        if 0 not in size:
            return self.step(results)
        width, height = (max(1, side) for side in size)
        resized = mmcv.imresize(image, (width, height), interpolation=self.step.interpolation)
        factors = (width / image.shape[1], height / image.shape[0])
        return results | dict(img=resized, img_shape=(height, width), scale_factor=factors, keep_ratio=True)
