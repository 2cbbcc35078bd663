"""Rewriters for mmdeploy 1.3.1: fixes of its export, each with its reason.

Deploy configs name this module in ``codebase_config.module``. mmdeploy imports it, applies the rewriters during an
export and removes them afterwards. Heads that have no rewriter here are exported as mmdeploy does by itself.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from mmdeploy.codebase.mmdet.deploy import get_post_processing_params
from mmdeploy.core import FUNCTION_REWRITER
from mmdeploy.mmcv.ops import multiclass_nms
from mmdet.models.dense_heads import RTMDetHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmseg.models.utils import Upsample
from torch import Tensor

from mnv4_mm.models.layers import MultiQueryAttention, matmul_attention


@FUNCTION_REWRITER.register_rewriter('torch.onnx.export')
def export_by_trace(*args: Any, **kwargs: Any) -> Any:
    """Call ``torch.onnx.export`` with ``dynamo=False``, that is, with the exporter based on TorchScript.

    mmdeploy rewrites the TorchScript graph and the symbolic functions of operators. The exporter based on
    ``torch.export``, the default since torch 2.9, fails on these rewriters. These warnings are silenced:

    - the TorchScript exporter is deprecated;
    - the tracer turns tensors into Python numbers, as heads do with shapes;
    - negative indices would be exported incorrectly: NMS and top-k produce none.
    """
    ctx = FUNCTION_REWRITER.get_context()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=torch.jit.TracerWarning)
        warnings.filterwarnings('ignore', 'You are using the legacy TorchScript-based', DeprecationWarning)
        warnings.filterwarnings('ignore', category=DeprecationWarning, module=r'torch\.onnx')
        warnings.filterwarnings('ignore', 'Exporting aten::index operator of advanced indexing', UserWarning)
        return ctx.origin_func(*args, dynamo=False, **kwargs)


@FUNCTION_REWRITER.register_rewriter('mnv4_mm.models.heads.SSDLiteHead.predict_by_feat')
@FUNCTION_REWRITER.register_rewriter('mnv4_mm.models.heads.SeparableRetinaHead.predict_by_feat')
@FUNCTION_REWRITER.register_rewriter('mmdet.models.dense_heads.retina_head.RetinaHead.predict_by_feat')
@FUNCTION_REWRITER.register_rewriter('mmdet.models.dense_heads.rtmdet_head.RTMDetSepBNHead.predict_by_feat')
def predict_by_feat(self: BaseDenseHead, *args: Any, **kwargs: Any) -> Any:
    """Select detections as mmdeploy does for any dense head, but from the boxes that mmdet passes to NMS.

    mmdeploy's own rewriters differ from mmdet:

    - All heads: mmdeploy ignores ``min_bbox_size``. Boxes without area, such as those clipped at the edge of the image,
      are kept and displace others.
    - SSDLite: mmdeploy selects the best ``nms_pre`` boxes of a level without regard to the last class, because it
      removes the background twice if scores are softmax (fixed after 1.3.1, open-mmlab/mmdeploy#2827). This rewriter
      ignores ``nms_pre`` and passes all boxes to NMS.
    - RTMDet: mmdeploy does not clip boxes at the edge of the image. This rewriter ignores ``nms_pre`` here too.

    Args:
        self: The head.
        *args: Positional arguments of mmdet's ``predict_by_feat``.
        **kwargs: Keyword arguments of mmdet's ``predict_by_feat``.

    Returns:
        Detections (N, D, 5) as (x1, y1, x2, y2, score) in pixels, and labels (N, D).
    """
    settings = get_post_processing_params(FUNCTION_REWRITER.get_context().cfg)
    cfg = self.test_cfg
    # RTMDet has fewer boxes than its nms_pre.
    if not self.use_sigmoid_cls or isinstance(self, RTMDetHead):
        self.test_cfg = type(cfg)({**cfg, 'nms_pre': -1})
    try:
        boxes, scores = BaseDenseHead.predict_by_feat(self, *args, **kwargs, with_nms=False)  # (N, B, 4), (N, B, C)
    finally:
        self.test_cfg = cfg
    min_size = cfg.get('min_bbox_size', -1)
    if min_size >= 0:
        width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]  # (N, B)
        scores = scores * ((width > min_size) & (height > min_size)).unsqueeze(-1).to(scores)
    return multiclass_nms(
        boxes,
        scores,
        settings.max_output_boxes_per_class,
        nms_type=cfg.nms.type,
        iou_threshold=cfg.nms.get('iou_threshold', settings.iou_threshold),
        score_threshold=cfg.get('score_thr', settings.score_threshold),
        pre_top_k=settings.pre_top_k,
        keep_top_k=cfg.get('max_per_img', settings.keep_top_k),
    )


@FUNCTION_REWRITER.register_rewriter('mmseg.models.utils.wrappers.Upsample.forward')
def scale_up(self: Upsample, x: Tensor) -> Tensor:
    """Upsample by the scale factor that FPNHead sets.

    mmseg computes the output size from the shape of the feature map as Python numbers, which a trace records as
    constants. Later layers resize again, so a file of dynamic size would not fail for images of another size, but
    silently return wrong results.
    """
    return F.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)


@FUNCTION_REWRITER.register_rewriter('mnv4_mm.models.layers.MultiQueryAttention.forward')
def attend_by_products(self: MultiQueryAttention, x: Tensor) -> Tensor:
    """Compute attention by matrix products: mmdeploy's rewriter of fused attention has a dropout in training mode."""
    ctx = FUNCTION_REWRITER.get_context()
    attend, self.attend = self.attend, matmul_attention
    try:
        return ctx.origin_func(self, x)
    finally:
        self.attend = attend
