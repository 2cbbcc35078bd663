"""Batch norm statistics in distributed training on CPUs, where they are not synchronised."""

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class SameBuffersHook(Hook):
    """Broadcast the buffers of rank 0 before validation, so that all processes validate the model that is saved.

    Each process computes batch norm statistics from its own images, and checkpoints contain those of rank 0.
    """

    priority = 'LOW'  # after EMAHook has swapped its averages into the model

    def before_val_epoch(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for buffer in model.buffers():
            broadcast(buffer)
