"""mmengine's Runner with safe reading of checkpoints, a shorter console log, and this package's hooks and options."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from mnv4_mm.data.augment.load import with_one_reader
from mnv4_mm.data.loading import innermost
from mnv4_mm.engine.building import building
from mnv4_mm.engine.distillation import NAME as DISTILLATION
from mnv4_mm.engine.distillation import attach_teacher
from mnv4_mm.engine.formatted import FormattedConfig
from mnv4_mm.engine.loaders import prepare_loader
from mnv4_mm.engine.measured import MeasuredEvaluator
from mnv4_mm.engine.qat import NAME as QAT
from mnv4_mm.engine.qat import quantize_model
from mnv4_mm.engine.sandwich import NAME as SUPERNET
from mnv4_mm.engine.sandwich import train_supernet
from mnv4_mm.engine.step import align_optimizer_state, use_channels_last
from mnv4_mm.errors import UserError
from mnv4_mm.models.model_config import dicts
from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines
from mnv4_mm.upstream import DEPRECATED_LOSSES  # on upstream, this import also gives mmengine a loader
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint, written_atomically
from mnv4_mm.weights.strict import load_into, rows_by_class, tensor_state

# Log records that begin like this go to the log file only: long dumps, and mmengine's warnings about itself.
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


# Hooks of every training run, whatever its config; a config may change them in its default_hooks.
GUARDS = dict(
    step_seed=dict(type='StepSeedHook'),
    loss_guard=dict(type='LossGuardHook'),
    skipped_images=dict(type='SkippedImagesHook'),
)


@RUNNERS.register_module()
class SafeRunner(Runner):
    """mmengine's Runner with safe and strict loading of checkpoints, and with this package's hooks and options.

    Checkpoints of ``resume``, ``load_from`` and tests are read by ``read_checkpoint``, which refuses objects that would
    run code when unpickled.

    In a run that resumes, that only evaluates, or whose config has ``qat``, a missing, unexpected or misshapen weight
    is an error. In other runs with ``load_from`` (fine-tuning), the weights that fit are loaded and the others are
    listed in the log. If the data has other classes than the checkpoint, the class-specific weights are taken over by
    class name, see ``rows_by_class``.

    Besides mmengine's keys, the config may have ``channels_last`` (see ``use_channels_last``), ``distillation`` (see
    ``attach_teacher``), ``supernet`` (see ``train_supernet``) and ``qat`` (see ``quantize_model``). The hooks in
    ``GUARDS`` are added to its ``default_hooks``. ``CheckpointHook`` is replaced by ``SafeCheckpointHook``, and
    ``Evaluator`` by ``MeasuredEvaluator``.
    """

    _checkpoint: Checkpoint | None = None
    _load_from: str | None

    @classmethod
    def from_cfg(cls, cfg: Config, checkpoint: Checkpoint | None = None) -> 'SafeRunner':
        """Build the Runner of a config.

        Args:
            cfg: The config; not changed. If the run resumes and ``cfg.randomness`` has no seed, the run uses the seed
                stored in ``checkpoint``.
            checkpoint: The checkpoint that the run will load or resume, if it has been read already. The Runner drops
                its reference to this object when it loads the weights. None to read the file that ``cfg`` names.

        Returns:
            The Runner. The weights of the checkpoint are not yet loaded.

        Raises:
            BuildError: A component cannot be built. Loaders, loops and the optimizer are built later, by ``train`` and
                ``test``, which then raise the same error.
        """
        seed = checkpoint.meta.get('seed') if checkpoint is not None and cfg.get('resume') else None
        if seed is not None and (cfg.get('randomness') or {}).get('seed') is None:
            # mmengine restores the seed only after it has built the sampler, whose order then differs
            # (open-mmlab/mmengine#1468).
            cfg = copy.deepcopy(cfg)
            cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
        with building('a run with these settings'):
            runner = super().from_cfg(FormattedConfig.of(cfg))
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
            with building('model'):
                built = super().build_model(model)
            if self.cfg.get(QAT):
                quantize_model(built, self.cfg[QAT])
            if self._has_teacher:
                attach_teacher(built, self.cfg[DISTILLATION], bool(self.cfg.get('channels_last')))
            if self._is_supernet:
                train_supernet(
                    built,
                    self.cfg.model.to_dict(),
                    self.cfg[SUPERNET],
                    self.cfg.input_size,
                    self.cfg.default_scope,
                    self.seed,
                    bool(self.cfg.get('channels_last')),
                )
        if self.cfg.get('channels_last'):
            use_channels_last(built)
        return built

    @property
    def _is_supernet(self) -> bool:
        return bool(self.cfg.get(SUPERNET)) and self._train_loop is not None

    @property
    def _has_teacher(self) -> bool:
        return bool(self.cfg.get(DISTILLATION)) and self._train_loop is not None

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        hooks = dict(hooks or {})
        checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
        if isinstance(checkpoint, dict) and checkpoint['type'] == 'CheckpointHook':
            hooks['checkpoint'] = {**checkpoint, 'type': 'SafeCheckpointHook'}
        if self._has_teacher:
            hooks['distillation'] = dict(type='DistillationHook')
        if self._is_supernet:
            hooks['sandwich'] = dict(type='SandwichHook')
        if self.cfg.get(QAT):
            hooks['ranges'] = dict(type='RangesHook')
        with building('default_hooks'):
            super().register_default_hooks({**GUARDS, **hooks})

    @staticmethod
    def build_dataloader(dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False) -> DataLoader:
        """Build a data loader whose settings fit its data, with reproducible augmentation.

        ``prepare_loader`` adjusts the settings, and ``data.loading`` explains how the augmentation is seeded.

        Args:
            dataloader: Config of a data loader. A ``DataLoader`` is returned as it is.
            seed: Seed of the run. With None, the augmentation is not seeded image by image.
            diff_rank_seed: Whether the processes have different seeds. If True, ``seed`` is not used for the order and
                the augmentation of the images.

        Raises:
            UserError: The data set has no images, or none after filtering.
        """
        current = DefaultScope.get_current_instance()
        dataloader = with_one_reader(dataloader, current and current.scope_name)
        with without_lines(READING_ANNOTATIONS):
            if isinstance(dataloader, dict):
                dataloader = prepare_loader(dataloader, None if diff_rank_seed else seed)
            return Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def build_evaluator(self, evaluator: Any) -> Evaluator:
        name = 'val_evaluator' if evaluator is self._val_evaluator else 'test_evaluator'
        with without_lines(READING_ANNOTATIONS), building(name):
            built = super().build_evaluator(evaluator)
        for metric in built.metrics:
            if getattr(metric, 'collect_device', '') == 'cpu' and getattr(metric, 'collect_dir', None) is None:
                # mmengine's name for "by messages", on CPUs too. The default is by files in the current folder, which
                # machines need not share.
                metric.collect_device = 'gpu'
        return MeasuredEvaluator(built.metrics) if type(built) is Evaluator else built

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        # mmengine reuses the first visualiser of a process, and its files, for a second Runner with the same name.
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.experiment_name}
        with building('visualizer'):
            return super().build_visualizer(visualizer)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        with building('optim_wrapper'):
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        with building('param_scheduler'):
            return super().build_param_scheduler(scheduler)

    def build_train_loop(self, loop: Any) -> Any:
        with self._loader_built('train_dataloader'), building('train_cfg'):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop: Any) -> Any:
        with self._loader_built('val_dataloader'), building('val_cfg'):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: Any) -> Any:
        with self._loader_built('test_dataloader'), building('test_cfg'):
            return super().build_test_loop(loop)

    @contextmanager
    def _loader_built(self, name: str) -> Iterator[None]:
        """Build a data loader for a loop that would build it, so that an error names the loader and not the loop."""
        settings = getattr(self, f'_{name}')
        if isinstance(settings, dict):
            with building(name):
                diff_rank_seed = self._randomness_cfg.get('diff_rank_seed', False)
                setattr(self, f'_{name}', self.build_dataloader(settings, self.seed, diff_rank_seed))
        try:
            yield
        finally:
            # mmengine reads the batch size from it when it scales the learning rate.
            setattr(self, f'_{name}', settings)

    def register_custom_hooks(self, hooks: Any) -> None:
        with building('custom_hooks'):
            super().register_custom_hooks(hooks)

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: object = None,
    ) -> dict[str, Any]:
        """Load the weights of a local checkpoint file into the model.

        Args:
            filename: The file. It is not read if ``from_cfg`` was called with the ``Checkpoint`` of this file.
            map_location: Device of the tensors, see ``torch.load``.
            strict: Whether missing, unexpected or misshapen weights are an error in every run. If False, they are an
                error only in a run that resumes, only evaluates or has ``qat`` in its config.
            revise_keys: Not used; part of mmengine's signature.

        Returns:
            Content of the checkpoint, with the changes that hooks and the adaptation to other classes have made.

        Raises:
            UserError: The file cannot be read safely or does not fit, or a run is resumed from a file that holds
                weights only.
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
        exact = strict or self._resume or self._train_loop is None or bool(self.cfg.get(QAT))
        if not exact:
            self._take_over_classes(model, loaded, content)
        load_into(model, Checkpoint(loaded.path, content), exact)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        if self._resume and not {'optimizer', 'message_hub'} <= content.keys():
            raise UserError(
                f'{filename} holds weights only and cannot be resumed: use --cfg-options load_from={filename}'
            )
        if self._resume:
            # Otherwise torch would take `fused` from the checkpoint, and ignore the current --fused.
            content['optimizer']['param_groups'] = [
                {**group, 'fused': self.cfg.optim_wrapper.optimizer.get('fused')} if 'fused' in group else group
                for group in content['optimizer'].get('param_groups', [])
            ]
        return content

    def _init_model_weights(self) -> None:
        # A resumed run replaces all weights: ImageNet weights need not be downloaded again. So does one of --qat.
        if not ((self._resume or self.cfg.get(QAT)) and self._checkpoint is not None):
            super()._init_model_weights()

    def _take_over_classes(self, model: nn.Module, loaded: Checkpoint, content: dict[str, Any]) -> None:
        """Map the class-specific weights in ``content`` to the classes of the data, see ``rows_by_class``."""
        new = list((getattr(self.train_dataloader.dataset, 'metainfo', None) or {}).get('classes') or ())
        old = list((loaded.meta.get('dataset_meta') or {}).get('classes') or ())
        if not (old and new) or old == new:
            return
        config = copy.deepcopy(self.cfg.model)
        for part in dicts(config):
            if 'num_classes' in part:
                part['num_classes'] += 1
        with quiet_losses():
            wider = MODELS.build(config).state_dict()
        state = tensor_state(content, loaded.path)
        content['state_dict'] = rows_by_class(state, model.state_dict(), wider, old, new)
        lines = [('taken over by name', [name for name in new if name in old])]
        lines += [('new, from random weights', [name for name in new if name not in old])]
        lines += [('left out', [name for name in old if name not in new])]
        shown = '; '.join(f'{what}: {", ".join(names)}' for what, names in lines if names)
        self.logger.warning(f'{loaded.path} was trained on other classes. {shown}')

    def load_or_resume(self) -> None:
        if self._resume and self._load_from is None and self._checkpoint is not None:
            # mmengine would take the file that last_checkpoint names, which may be damaged.
            self._load_from = str(self._checkpoint.path)
        super().load_or_resume()

    def resume(self, *args: Any, **kwargs: Any) -> None:
        super().resume(*args, **kwargs)
        if isinstance(self.optim_wrapper, OptimWrapper):
            align_optimizer_state(self.optim_wrapper.optimizer)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, meta: dict | None = None, **kwargs) -> None:
        """Save a checkpoint as mmengine does, but write the file atomically.

        If the training data set has ``cat_ids``, ``meta`` of the checkpoint gets them as ``category_ids``, in the order
        of labels. ``infer`` writes these ids to its JSON files.

        Args:
            out_dir: Folder, or URL of a storage service. A file on a storage service is not written atomically.
            filename: Name of the file.
            *args: See mmengine's ``Runner.save_checkpoint``.
            meta: More entries for ``meta`` of the checkpoint; None for no more.
            **kwargs: See mmengine's ``Runner.save_checkpoint``.

        Raises:
            UserError: The disk is full, or the file cannot be written.
        """
        dataset = innermost(self.train_dataloader.dataset)
        # In the order of labels.
        more = dict(category_ids=list(dataset.cat_ids)) if hasattr(dataset, 'cat_ids') else {}
        meta = {**(meta or {}), **more}
        if '://' in out_dir:  # a storage service
            super().save_checkpoint(out_dir, filename, *args, meta=meta, **kwargs)
            return
        with written_atomically(Path(out_dir) / filename) as part:
            super().save_checkpoint(out_dir, part.name, *args, meta=meta, **kwargs)


@contextmanager
def quiet_losses() -> Iterator[None]:
    """Suppress mmseg's warning about the default ``avg_non_ignore=False`` of ``CrossEntropyLoss`` in a ``with`` block.

    The default is intended, because mmseg's published mIoU was obtained with it.

    The warning of upstream mmseg about its own ``build_loss`` is suppressed too, see ``mnv4_mm.upstream``.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message=DEPRECATED_LOSSES)
        warnings.filterwarnings('ignore', message='Default ``avg_non_ignore`` is False')
        yield


def _belongs_on_console(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not (text.startswith(FILE_ONLY) or 'is duplicate. It is skipped since bypass_duplicate' in text)
