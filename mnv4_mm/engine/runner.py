"""mmengine's Runner with safe reading of checkpoints, a readable console, and ``channels_last``."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS, DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from mnv4_mm.data.augment.load import with_one_reader
from mnv4_mm.engine.step import align_optimizer_state, use_channels_last
from mnv4_mm.errors import UserError
from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint
from mnv4_mm.weights.strict import load_into

# Beginnings of records that go to the log file only: dumps of many screens, and mmengine's warnings about itself.
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
    """Runner that reads checkpoints for ``resume``, ``load_from`` and tests as tensors only.

    A run that resumes or only evaluates needs every weight: a missing, unexpected or misshapen one is an error.
    ``load_from`` (fine-tuning) may leave some out, as in mmengine, and lists them.
    """

    _checkpoint: Checkpoint | None = None

    @classmethod
    def from_cfg(cls, cfg: Config, checkpoint: Checkpoint | None = None) -> 'SafeRunner':
        """Build the Runner of a config.

        Args:
            cfg: The config.
            checkpoint: The checkpoint that the run will load or resume, if it has been read already. It is released
                once it has been loaded.
        """
        runner = super().from_cfg(cfg)
        runner._checkpoint = checkpoint
        return runner

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(_belongs_on_console)
        return logger

    def build_model(self, model: Any) -> nn.Module:
        with quiet_losses():
            built = super().build_model(model)
        if self.cfg.get('channels_last'):
            use_channels_last(built)
        return built

    @staticmethod
    def build_dataloader(dataloader: Any, *args, **kwargs) -> DataLoader:
        current = DefaultScope.get_current_instance()
        dataloader = with_one_reader(dataloader, current and current.scope_name)
        with without_lines(READING_ANNOTATIONS):
            return Runner.build_dataloader(dataloader, *args, **kwargs)

    def build_evaluator(self, evaluator: Any) -> Evaluator:
        with without_lines(READING_ANNOTATIONS):
            return super().build_evaluator(evaluator)

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        # mmengine reuses the first visualiser of a process, and its files, for a second Runner with the same name.
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
        """Load the weights of a local checkpoint file into the model.

        Args:
            filename: The file. It is not read again if ``from_cfg`` got its content.
            map_location: Device of the tensors, see ``torch.load``.
            strict: Raise an error for anything that does not fit, also when fine-tuning.
            revise_keys: Argument of mmengine's, not used.

        Returns:
            Content of the checkpoint.

        Raises:
            UserError: The file cannot be read safely, or does not fit.
        """
        loaded, self._checkpoint = self._checkpoint, None
        if loaded is None or loaded.path != Path(filename):
            loaded = read_checkpoint(filename, map_location)
        # Hooks and the lines below change entries, and the caller may go on to use the checkpoint.
        content = {key: copy.copy(value) for key, value in loaded.content.items()}
        # `resume` would run this text as Python; only runs of mmengine before 0.1 wrote it.
        content.get('meta', {}).pop('config', None)
        self.call_hook('after_load_checkpoint', checkpoint=content)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        load_into(model, Checkpoint(loaded.path, content), strict or self._resume or self._train_loop is None)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        if self._resume and not {'optimizer', 'message_hub'} <= content.keys():
            raise UserError(
                f'{filename} holds weights only and cannot be resumed: use --cfg-options load_from={filename}'
            )
        if self._resume:
            # torch would use the checkpoint's choice, whatever --fused is now.
            content['optimizer']['param_groups'] = [
                {**group, 'fused': self.cfg.optim_wrapper.optimizer.get('fused')} if 'fused' in group else group
                for group in content['optimizer'].get('param_groups', [])
            ]
        return content

    def resume(self, *args: Any, **kwargs: Any) -> None:
        super().resume(*args, **kwargs)
        if isinstance(self.optim_wrapper, OptimWrapper):
            align_optimizer_state(self.optim_wrapper.optimizer)

    def save_checkpoint(self, *args, meta: dict | None = None, **kwargs) -> None:
        """Save as mmengine does, with the data's category ids in the order of labels, for the JSON of ``infer``."""
        dataset = self.train_dataloader.dataset
        while hasattr(dataset, 'dataset'):
            dataset = dataset.dataset
        more = dict(category_ids=list(dataset.cat_ids)) if hasattr(dataset, 'cat_ids') else {}
        super().save_checkpoint(*args, meta={**(meta or {}), **more}, **kwargs)


@contextmanager
def quiet_losses() -> Iterator[None]:
    """Suppress mmseg's warning that its loss's default is not PyTorch's: mIoU is published with that default."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Default ``avg_non_ignore`` is False')
        yield


def _belongs_on_console(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not (text.startswith(FILE_ONLY) or 'is duplicate. It is skipped since bypass_duplicate' in text)
