"""Transform and backbone of control runs, whose scores should change in a known way.

``protocol.CONTROLS`` lists the controls. The transform is for ``shuffled``, the backbone for ``zeroed``.
"""

import os
import zlib
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.model import BaseModule
from mmengine.registry import MODELS, TRANSFORMS
from torch import Tensor

IGNORED = 255  # label of unlabelled pixels


@TRANSFORMS.register_module()
class ShuffleLabels(BaseTransform):
    """Replace the labels of an image by random ones, which are the same whenever the image is loaded.

    Segmentation: the ``num_classes`` classes are permuted at random for each image. Detection: each box moves to a
    random place in the image and gets a random class.

    Args:
        num_classes: Number of classes.
        seed: Seed of the random labels.
    """

    def __init__(self, num_classes: int, seed: int = 0) -> None:
        self.num_classes = num_classes
        self.seed = seed

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Shuffle the labels of an image in place.

        Args:
            results: Dict of mmcv's pipelines with ``img_path`` and the labels: ``gt_seg_map``, (H, W), or
                ``gt_bboxes``, (N, 4) as (x1, y1, x2, y2) in pixels, with ``gt_bboxes_labels``, (N,), and ``img_shape``.

        Returns:
            ``results``.
        """
        name = zlib.crc32(os.path.basename(results['img_path']).encode(errors='surrogateescape'))
        random = np.random.default_rng([self.seed, name])
        if 'gt_seg_map' in results:
            labels = np.arange(256, dtype=np.uint8)
            labels[: self.num_classes] = random.permutation(self.num_classes)
            results['gt_seg_map'] = labels[results['gt_seg_map']]
        if 'gt_bboxes' in results:
            height, width = results['img_shape'][:2]
            boxes = results['gt_bboxes'].tensor
            sides = boxes[:, 2:] - boxes[:, :2]
            room = (torch.tensor([width, height]) - sides).clamp(min=0)
            corners = room * torch.from_numpy(random.random((len(boxes), 2))).to(boxes)
            results['gt_bboxes'].tensor = torch.cat([corners, corners + sides], 1)
            results['gt_bboxes_labels'] = random.integers(self.num_classes, size=len(boxes))
        return results


@MODELS.register_module()
class ZeroedDeepest(BaseModule):
    """A backbone whose deepest feature map is zero.

    Args:
        backbone: Config of the backbone.
    """

    def __init__(self, backbone: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.out_channels = self.backbone.out_channels
        self.out_strides = self.backbone.out_strides

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of the backbone, the last one multiplied by zero."""
        *maps, deepest = self.backbone(x)
        return (*maps, deepest * 0)
