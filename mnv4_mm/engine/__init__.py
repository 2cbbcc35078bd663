"""Running: the safe Runner, hooks, mixed precision on the CPU, the segmentation metric."""

from mnv4_mm.engine.amp import Bf16OptimWrapper
from mnv4_mm.engine.curves import CurvesHook
from mnv4_mm.engine.iou import ExactIoUMetric
from mnv4_mm.engine.overlay import OverlayHook
from mnv4_mm.engine.progress import ProgressHook
from mnv4_mm.engine.runner import SafeRunner

__all__ = ['Bf16OptimWrapper', 'CurvesHook', 'ExactIoUMetric', 'OverlayHook', 'ProgressHook', 'SafeRunner']
