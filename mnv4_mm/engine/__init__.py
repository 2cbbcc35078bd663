"""The Runner, hooks, mixed precision and metrics. Importing this package registers them."""

from mnv4_mm.engine.amp import Bf16OptimWrapper
from mnv4_mm.engine.buffers import SameBuffersHook
from mnv4_mm.engine.coco_metric import FastCocoMetric
from mnv4_mm.engine.curves import CurvesHook
from mnv4_mm.engine.iou import ExactIoUMetric
from mnv4_mm.engine.overlay import OverlayHook
from mnv4_mm.engine.progress import ProgressHook
from mnv4_mm.engine.runner import SafeRunner
from mnv4_mm.engine.step import CompileHook

__all__ = [
    'Bf16OptimWrapper',
    'CompileHook',
    'CurvesHook',
    'ExactIoUMetric',
    'FastCocoMetric',
    'OverlayHook',
    'ProgressHook',
    'SafeRunner',
    'SameBuffersHook',
]
