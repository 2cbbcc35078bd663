"""Batch norm statistics of several processes on CPUs, where they are not synchronous."""

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class SameBuffersHook(Hook):
    """Validates, in all processes, the net that the first one saves.

    Each process gathers batch norm statistics of its own pictures; checkpoints have the first one's.
    """

    priority = 'LOW'  # after EMAHook has put its averages into the model

    def before_val_epoch(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for buffer in model.buffers():
            broadcast(buffer)
