"""Running: the safe Runner, hooks, mixed precision on the CPU."""

from mnv4_mm.engine.amp import Bf16OptimWrapper
from mnv4_mm.engine.curves import CurvesHook
from mnv4_mm.engine.progress import ProgressHook
from mnv4_mm.engine.runner import SafeRunner

__all__ = ['Bf16OptimWrapper', 'CurvesHook', 'ProgressHook', 'SafeRunner']
