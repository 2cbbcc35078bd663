"""What registers with mmdeploy 1.3.1 (DESIGN rule 7: mended here, each with its reason).

A deploy config names this module in ``codebase_config.module``; mmdeploy imports it and applies the rewriters while it
exports, and takes them back. The other heads go through mmdeploy as they are.
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
    """Calls the exporter that traces: mmdeploy's rewriters of graphs and symbols are made for it.

    Since torch 2.9 the other one is the default, which fails on them. Silenced, and nothing else: what it says about
    its own age, of each shape that a head reads as a number, and of negative indices, which NMS and top-k do not give.
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
    """Mmdeploy's detections of any dense head, but of the boxes that mmdet hands to NMS.

    All: boxes without area, such as those clipped at the picture's edge, are not left out as mmdet's ``min_bbox_size``
    does, and take places among the best.
    SSDLite: the best ``nms_pre`` boxes of a level are chosen by all classes but the last one: where scores are softmax
    mmdeploy takes the background away twice (mended after 1.3.1, open-mmlab/mmdeploy#2827). Here all are kept.
    RTMDet: mmdeploy's rewriter of its head leaves boxes beyond the picture's edge, where mmdet clips them.

    Returns:
        Detections (N, D, 5) as x1, y1, x2, y2 in pixels and score, and labels (N, D).
    """
    settings = get_post_processing_params(FUNCTION_REWRITER.get_context().cfg)
    cfg = self.test_cfg
    # RTMDet's nms_pre is more than the boxes it has.
    if not self.use_sigmoid_cls or isinstance(self, RTMDetHead):
        self.test_cfg = type(cfg)({**cfg, 'nms_pre': -1})
    try:
        boxes, scores = BaseDenseHead.predict_by_feat(self, *args, **kwargs, with_nms=False)  # (N, B, 4), (N, B, C)
    finally:
        self.test_cfg = cfg
    smallest = cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]  # (N, B)
        scores = scores * ((width > smallest) & (height > smallest)).unsqueeze(-1).to(scores)
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
    """Scales by the factor that FPNHead names.

    mmseg reads the map's shape as numbers, which a trace keeps for pictures of any size; what follows resizes again, so
    that the result is only wrong, in all but the first picture's size.
    """
    return F.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)


@FUNCTION_REWRITER.register_rewriter('mnv4_mm.models.layers.MultiQueryAttention.forward')
def attend_by_products(self: MultiQueryAttention, x: Tensor) -> Tensor:
    """Writes attention as matrix products: mmdeploy's form of the fused one has a dropout in training mode in it."""
    ctx = FUNCTION_REWRITER.get_context()
    attend, self.attend = self.attend, matmul_attention
    try:
        return ctx.origin_func(self, x)
    finally:
        self.attend = attend
