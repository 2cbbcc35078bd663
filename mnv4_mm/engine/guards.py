"""Hooks that stop training on non-finite losses or too many unreadable images, and that seed each step."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mnv4_mm.data.loading import SKIPPED, innermost, set_seeds
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import write_checkpoint

# Distinguishes the seeds of steps from those of images, see data.loading.
STEP_STREAM = 2**31


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Hook that seeds each training step, so that dropout does not depend on where a run was resumed.

    The seed is made from the seed of the run, the rank and the number of the step.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        set_seeds(runner.seed, get_rank(), STEP_STREAM, runner.iter, all_devices=True)


@HOOKS.register_module()
class LossGuardHook(Hook):
    """Hook that stops a run with a ``UserError`` at the first loss or weight that is not finite.

    The losses are checked in each step before the backward pass, so that a broken loss does not reach the weights.
    Parameters and running statistics of norms are checked before each copy of the weights, and before each checkpoint
    is saved. Infinite gradients in float16 are not an error, because the loss scaler skips such steps.

    A stopped run leaves two files in its work directory. ``non_finite.json`` has the problem, the step, the learning
    rates, the losses and the images of the batch; rank n > 0 writes ``non_finite_rank<n>.json`` instead.
    ``last_good.pth`` has the latest copy of the weights. This file is missing if the weights were never finite.

    Args:
        interval: Number of steps between two copies of the weights. Only the latest copy is kept, in CPU memory.
    """

    priority = 'VERY_HIGH'

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._good: tuple[int, dict[str, Tensor]] | None = None
        self._batch: Any = None
        self._runner: Runner | None = None
        self._handle: Any = None

    def before_train(self, runner: Runner) -> None:
        self._runner = runner
        # It runs before the backward pass. Hooks of mmengine see the loss only after the step of the optimiser.
        self._handle = _unwrapped(runner).register_forward_hook(self._check_losses)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._batch = data_batch
        if self._good is None or runner.iter % self.interval == 0:
            model = _unwrapped(runner)
            if not (broken := non_finite(model)):
                state = {name: value.detach().to('cpu', copy=True) for name, value in model.state_dict().items()}
                self._good = runner.iter, state
            else:
                self._stop(runner, f'{broken} is not finite')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # A finite loss may have an infinite gradient, which makes weights infinite.
        if self._handle is not None and (broken := non_finite(_unwrapped(runner))):
            self._stop(runner, f'{broken} is not finite')

    def after_train(self, runner: Runner) -> None:
        self.close()

    def close(self) -> None:
        """Stop checking the losses, and release the model and the copy of its weights. A second call has no effect."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._good = self._batch = self._runner = None

    def _check_losses(self, model: nn.Module, args: Any, losses: Any) -> None:
        if not (model.training and isinstance(losses, dict) and self._runner is not None):
            return
        values = {name: value.detach().float().mean() for name, value in _flatten(losses) if 'loss' in name}
        if values and not torch.stack(list(values.values())).isfinite().all():
            found = {name: float(value) for name, value in values.items()}
            name, value = next((name, value) for name, value in found.items() if not math.isfinite(value))
            self._stop(self._runner, f'{name} is {value}', found)

    def _stop(self, runner: Runner, problem: str, losses: dict[str, float] | None = None) -> None:
        step, work_dir = runner.iter + 1, Path(runner.work_dir)
        rates = sorted({group['lr'] for group in runner.optim_wrapper.optimizer.param_groups})
        samples = self._batch.get('data_samples', ()) if isinstance(self._batch, dict) else ()
        images = [
            dict(id=getattr(sample, 'img_id', None), path=getattr(sample, 'img_path', None)) for sample in samples
        ]
        record = work_dir / ('non_finite.json' if is_main_process() else f'non_finite_rank{get_rank()}.json')
        content = dict(
            problem=problem, step=step, epoch=runner.epoch + 1, learning_rates=rates, images=images,
            losses={name: value if math.isfinite(value) else str(value) for name, value in (losses or {}).items()},
        )  # fmt: skip
        record.write_text(json.dumps(content, indent=1), encoding='utf-8')
        kept = ''
        if self._good is not None:
            good_step, state = self._good
            meta = dict(
                epoch=runner.epoch,
                iter=good_step,
                cfg=runner.cfg.pretty_text,
                dataset_meta=getattr(runner.train_dataloader.dataset, 'metainfo', None),
            )
            write_checkpoint(dict(meta=meta, state_dict=state), work_dir / 'last_good.pth')
            kept = f'; {work_dir / "last_good.pth"} has the weights before step {good_step + 1}, the last good ones'
        self.close()
        names = [str(image['path']) for image in images if image['path']]
        shown = f' ({", ".join(names[:2])}{", ..." if names[2:] else ""})' if names else ''
        raise UserError(
            f'{problem} at step {step} (epoch {runner.epoch + 1}, learning rate {rates[-1]:.2g}): the run is stopped '
            f'and this state is not saved{kept}. Try a lower learning rate (--cfg-options '
            f'optim_wrapper.optimizer.lr={rates[-1] / 10:.2g}, or --auto-scale-lr if the batch is smaller than the one '
            f'of the config), optim_wrapper.clip_grad.max_norm=10, or no --amp; and '
            f'look at the images of the batch{shown}, listed in {record}'
        )


@HOOKS.register_module()
class SkippedImagesHook(Hook):
    """Hook that counts the training images that ``RobustDataset`` could not read.

    Each such image is logged when it is skipped, and all are listed in the log after training. The list is saved in the
    checkpoints, so that a resumed run continues it. With more images than ``allowed``, the run is stopped with a
    ``UserError``.

    In distributed training, each process compares its own count with ``allowed``, and checkpoints have the list of the
    main process. The list after training is that of all processes.

    Args:
        allowed: Largest fraction of the training images, in [0, 1], that may be skipped.
    """

    priority = 'NORMAL'
    KEY = 'skipped_images'

    def __init__(self, allowed: float = 0.01) -> None:
        self.allowed = allowed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
        problems = [problem for sample in samples for problem in sample.metainfo.get(SKIPPED, ())]
        known = self._known(runner)
        new = sorted(set(problems) - set(known))
        if not new:
            return
        for problem in new:
            runner.logger.warning(f'skipped: {problem}')
        known = [*known, *new]
        runner.message_hub.update_info(self.KEY, known)
        total = len(innermost(runner.train_dataloader.dataset))
        if len(known) > self.allowed * total:
            raise UserError(
                f'{len(known)} of {total} training images cannot be read any more, more than {self.allowed:.0%} '
                f'(first: {known[0]}): restore them and continue with --resume, or allow it with --allow-dropped'
            )

    def after_train(self, runner: Runner) -> None:
        known = sorted({problem for part in all_gather_object(self._known(runner)) for problem in part})
        if known:
            total = len(innermost(runner.train_dataloader.dataset))
            names = ''.join(f'\n  {problem}' for problem in known)
            runner.logger.warning(f'{len(known)} of {total} training images could not be read and were skipped:{names}')

    def _known(self, runner: Runner) -> list[str]:
        return list(runner.message_hub.runtime_info.get(self.KEY, ()))


def non_finite(model: nn.Module) -> str | None:
    """Return the name of the first parameter or norm statistic that has an infinite value or NaN; None if none has."""
    tensors: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
    tensors |= {name: value for name, value in model.named_buffers() if name.endswith(('running_mean', 'running_var'))}
    if not tensors:
        return None
    flags = torch.stack([value.detach().isfinite().all() for value in tensors.values()])
    return None if flags.all() else list(tensors)[int((~flags).nonzero()[0])]


def _flatten(losses: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in losses.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Sequence):  # one for each level
            for level, part in enumerate(value):
                if isinstance(part, Tensor):
                    yield f'{name}[{level}]', part


def _unwrapped(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
