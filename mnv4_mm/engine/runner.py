"""mmengine's Runner, which here reads checkpoints safely, keeps the console readable, and knows `channels_last`."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn

from mnv4_mm.engine.step import align_optimizer_state, use_channels_last
from mnv4_mm.errors import UserError
from mnv4_mm.weights import files as weights

# Dumps of many screens, and mmengine's warnings about itself: they belong into the log file, where they still are.
FILE_ONLY = (
    '\n---',
    'Config:',
    'Exp name:',
    'Hooks will be executed',
    'paramwise_options',
    'Distributed training is not used',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
)


@RUNNERS.register_module()
class SafeRunner(Runner):
    """Runner whose ``resume``, ``load_from`` and test checkpoints are read as tensors only.

    A run that resumes or only evaluates needs every weight: there a missing, left-over or misshapen one is an error.
    ``load_from`` (fine-tuning) may leave some out, as in mmengine, which lists them.
    """

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(_for_the_console)
        return logger

    def build_model(self, model: Any) -> nn.Module:
        with quiet_losses():
            built = super().build_model(model)
        if self.cfg.get('channels_last'):
            use_channels_last(built)
        return built

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        # mmengine hands a second Runner of a process the first one's visualiser, and its files, if the names are equal.
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.experiment_name}
        return super().build_visualizer(visualizer)

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: object = None,
    ) -> dict[str, Any]:
        """Loads the weights of a local checkpoint file into the model; ``revise_keys`` is mmengine's and not used.

        Raises:
            UserError: the file cannot be read safely, or does not fit where it must.
        """
        checkpoint = weights.load_checkpoint(filename, map_location)
        # `resume` would run this text as Python; only runs of mmengine before 0.1 wrote it.
        checkpoint.get('meta', {}).pop('config', None)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        weights.load_into(model, checkpoint, filename, strict=strict or self._resume or self._train_loop is None)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        if self._resume and not {'optimizer', 'message_hub'} <= checkpoint.keys():
            raise UserError(
                f'{filename} holds weights only and cannot be resumed: use --cfg-options load_from={filename}'
            )
        if self._resume:
            # torch would go on as the checkpoint says, whatever --fused is now.
            for group in checkpoint['optimizer'].get('param_groups', []):
                if 'fused' in group:
                    group['fused'] = self.cfg.optim_wrapper.optimizer.get('fused')
        return checkpoint

    def resume(self, *args: Any, **kwargs: Any) -> None:
        super().resume(*args, **kwargs)
        if isinstance(self.optim_wrapper, OptimWrapper):
            align_optimizer_state(self.optim_wrapper.optimizer)

    def save_checkpoint(self, *args, meta: dict | None = None, **kwargs) -> None:
        """As mmengine's; notes the category ids of the data too, in the order of labels, for ``infer``'s JSON."""
        dataset = self.train_dataloader.dataset
        while hasattr(dataset, 'dataset'):
            dataset = dataset.dataset
        more = dict(category_ids=list(dataset.cat_ids)) if hasattr(dataset, 'cat_ids') else {}
        super().save_checkpoint(*args, meta={**(meta or {}), **more}, **kwargs)


@contextmanager
def quiet_losses() -> Iterator[None]:
    """Silences mmseg's warning that its loss's default is not PyTorch's: mIoU is published with it."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Default ``avg_non_ignore`` is False')
        yield


def _for_the_console(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not (text.startswith(FILE_ONLY) or 'is duplicate. It is skipped since bypass_duplicate' in text)
