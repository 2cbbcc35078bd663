"""Config name or path -> the config that runs: index, merge of arguments, fit of backbone, data and classes.

Pure functions: they take a config and return another; none builds a Runner or touches a data set.
"""

import copy
import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, OPTIMIZERS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.models.timm_features import built_for_one_size, timm_normalisation
from mnv4_mm.tasks.detection import Detection
from mnv4_mm.tasks.segmentation import Segmentation
from mnv4_mm.tasks.task import Layout, Task
from mnv4_mm.weights.strict import pretrained_entries
from mnv4_mm.weights.tags import DEFAULT_TAGS, TAGS

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / 'configs'
# Top-level keys that something reads once the config file has been read. Other names of a config file (`batch_size`)
# have done their work by then.
READ_KEYS = {
    *inspect.signature(Runner.__init__).parameters, 'compile', 'custom_imports', 'find_unused_parameters',
    'model_wrapper_cfg', 'sync_bn', 'report_on_training_pictures', 'channels_last',
} - {'self', 'cfg'}  # fmt: skip
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')
TASKS: dict[str, Task] = {'mmdet': Detection(), 'mmseg': Segmentation()}


def config_index() -> dict[str, Path]:
    """Names of the shipped configs that train (file stem) and their paths: not the parts, nor mmdeploy's."""
    return {path.stem: path for path in sorted(CONFIGS.glob('*.py'))}


def load_config(name: str | Path) -> Config:
    """Loads a config by path, or a shipped one by name.

    Raises:
        UserError: no such config (near names are listed), or the file is broken.
    """
    path = Path(name)
    if not path.is_file():
        index = config_index()
        stem = path.stem if path.suffix == '.py' else path.name
        if stem not in index:
            raise UserError(f'no config {name}: neither a file nor one of the shipped names{_near(stem, index)}')
        path = index[stem]
    if path.suffix != '.py':
        raise UserError(f'{path} is not a config: expected a .py file')
    try:
        return Config.fromfile(str(path))
    # A config is a Python file that mmengine executes: it can raise anything.
    except Exception as error:
        raise UserError(
            f'config {path} cannot be read: {type(error).__name__}: {" ".join(str(error).split())}'
        ) from error


def _near(word: str, known: Iterable[str]) -> str:
    """The names most like a mistyped one, or all of them, as the end of a sentence."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f'; near: {", ".join(near)}' if near else f'; there are {", ".join(sorted(known))}'


def merge_options(cfg: Config, options: Mapping[str, Any]) -> Config:
    """Sets ``--cfg-options``, e.g. ``{'train_cfg.max_epochs': 3}``.

    Raises:
        UserError: the first part of a key is unknown or read by nobody, or a list index is out of range.
    """
    cfg = copy.deepcopy(cfg)
    for key in options:
        first = key.split('.')[0]
        if first in READ_KEYS:
            continue
        if first in cfg:
            raise UserError(
                f'--cfg-options {key}: {first} is read while the config file is read, setting it now would do nothing; '
                'set the value where it is used, e.g. train_dataloader.batch_size or optim_wrapper.optimizer.lr'
            )
        raise UserError(f'--cfg-options {key}: the config has no {first!r}{_near(first, READ_KEYS)}')
    try:
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError) as error:
        raise UserError(f'--cfg-options: {" ".join(str(error).split())}') from error
    return cfg


def merge_train_arguments(
    cfg: Config,
    name: str,
    *,
    work_dir: str | None = None,
    resume: bool | str = False,
    amp: bool = False,
    amp_dtype: str | None = None,
    channels_last: bool | None = None,
    fused: bool | None = None,
    compiled: bool = False,
    on_gpu: bool = False,
    backbone: str | None = None,
    layout: Layout | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    epochs: int | None = None,
    iters: int | None = None,
) -> Config:
    """The config that ``tools/train.py`` runs. ``options`` are merged last: what a user spells out wins.

    Args:
        cfg: A loaded config.
        name: Its name, for the default work directory ``work_dirs/<name>[_<backbone>][_<data>]``.
        work_dir: Where to write instead.
        resume: Continue: the work directory's last checkpoint if True, else this checkpoint.
        amp: See ``fit_precision``.
        amp_dtype: See ``fit_precision``.
        channels_last: Whether maps lie as (N, H, W, C) in memory; the config's own choice if left out.
        fused: See ``fit_optimizer``.
        compiled: Compile backbone, neck and head by ``torch.compile``.
        on_gpu: Whether training will run on a GPU.
        backbone: See ``fit_backbone``.
        layout: A user's data set, see ``fit_data``.
        options: See ``merge_options``.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.
        auto_scale_lr: Scale the learning rate by real batch size / ``auto_scale_lr.base_batch_size``.
        epochs: See ``fit_length``.
        iters: See ``fit_length``.
    """
    parts = [name]
    if backbone:
        cfg = fit_backbone(cfg, backbone)
        parts.append(backbone)
    if layout:
        cfg = fit_data(cfg, layout)
        parts.append(layout.root.resolve().name)
    cfg = copy.deepcopy(cfg)
    for length, unit in ((epochs, 'epochs'), (iters, 'iters')):
        cfg = fit_length(cfg, length, unit) if length is not None else cfg
    if amp or amp_dtype:
        cfg = fit_precision(cfg, amp_dtype or ('fp16' if on_gpu else 'bf16'), on_gpu)
    if channels_last is not None:
        cfg.channels_last = channels_last
    if compiled:
        cfg.default_hooks.compile = dict(type='CompileHook')
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'--auto-scale-lr: {name} names no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    cfg = fit_launcher(cfg, launcher, on_gpu)
    cfg.work_dir = work_dir or str(Path('work_dirs') / '_'.join(parts))
    cfg.resume = bool(resume)
    if isinstance(resume, str):
        cfg.load_from = resume
    # Last: the optimiser may be one of the options.
    return fit_optimizer(merge_options(cfg, options or {}), fused)


def fit_precision(cfg: Config, dtype: str, on_gpu: bool) -> Config:
    """Mixed precision: ``fp16`` with loss scaling, which needs a GPU, or ``bf16``.

    Raises:
        UserError: another type, or fp16 without a GPU.
    """
    if dtype not in ('fp16', 'bf16'):
        raise UserError(f'--amp-dtype must be fp16 or bf16, got {dtype!r}')
    if dtype == 'fp16' and not on_gpu:
        raise UserError('--amp-dtype fp16 needs a GPU; a CPU has bf16')
    cfg = copy.deepcopy(cfg)
    for key in ('loss_scale', 'dtype', 'use_fp64'):  # of a wrapper that the config has already
        cfg.optim_wrapper.pop(key, None)
    fp16 = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
    cfg.optim_wrapper.update(fp16 if dtype == 'fp16' else dict(type='Bf16OptimWrapper'))
    return cfg


def fit_optimizer(cfg: Config, fused: bool | None) -> Config:
    """Lets torch's optimiser update all parameters in one kernel.

    Args:
        cfg: A config.
        fused: Whether to; if left out, wherever the optimiser can and the config does not say otherwise.

    Raises:
        UserError: it is asked for and the optimiser cannot.
    """
    cfg = copy.deepcopy(cfg)
    optimizer = cfg.optim_wrapper.optimizer
    known = OPTIMIZERS.get(optimizer.type) if isinstance(optimizer.get('type'), str) else optimizer.get('type')
    can = known is not None and 'fused' in inspect.signature(known).parameters
    if fused and not can:
        raise UserError(f'--fused: {optimizer.get("type")} has no fused form')
    if fused is not None and can:
        optimizer.fused = fused
    elif can and not optimizer.keys() & {'fused', 'foreach', 'differentiable'}:
        optimizer.fused = True
    return cfg


def fit_launcher(cfg: Config, launcher: str, on_gpu: bool) -> Config:
    """Says how the processes are started. In a checkpoint's own config that is how its training was.

    Args:
        cfg: A config.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.
        on_gpu: Whether they run on GPUs.
    """
    cfg = copy.deepcopy(cfg)
    cfg.launcher = launcher
    if launcher == 'none':
        return cfg
    cfg.env_cfg.dist_cfg.backend = 'nccl' if on_gpu else 'gloo'
    if on_gpu:
        cfg.sync_bn = 'torch'
        if 'device_ids' in (cfg.get('model_wrapper_cfg') or {}):
            cfg.pop('model_wrapper_cfg')  # it was trained on CPUs
    else:  # mmengine would wrap the model for GPU LOCAL_RANK
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        others = [hook for hook in cfg.get('custom_hooks', []) if hook['type'] != 'SameBuffersHook']
        cfg.custom_hooks = [*others, dict(type='SameBuffersHook')]
    return cfg


def fit_length(cfg: Config, length: int, unit: str) -> Config:
    """Shortens or stretches a schedule, everything counted in its unit in proportion.

    Args:
        cfg: A config.
        length: The new number of epochs or iterations.
        unit: ``epochs`` or ``iters``, which must be what the config counts in.

    Raises:
        UserError: not a positive number, or the config counts in the other unit.
    """
    counts = 'epochs' if 'max_epochs' in cfg.get('train_cfg', {}) else 'iters'
    if unit != counts:
        raise UserError(f'--{unit} does not fit: this config counts in {counts}, use --{counts}')
    if length < 1:
        raise UserError(f'--{unit} must be at least 1, got {length}')
    cfg = copy.deepcopy(cfg)
    key, by_epoch = f'max_{unit}', unit == 'epochs'
    before = cfg.train_cfg[key]

    def scaled(point: int) -> int:
        return round(point * length / before)

    cfg.train_cfg[key] = length
    cfg.train_cfg.val_interval = max(1, scaled(cfg.train_cfg.get('val_interval', 1)))
    if 'dynamic_intervals' in cfg.train_cfg:
        cfg.train_cfg.dynamic_intervals = [(scaled(start), every) for start, every in cfg.train_cfg.dynamic_intervals]
    schedulers = []
    for scheduler in cfg.param_scheduler:
        if scheduler.get('by_epoch', True) == by_epoch:
            for name in ('begin', 'end', 'T_max'):
                if name in scheduler:
                    scheduler[name] = scaled(scheduler[name])
            if 'T_max' in scheduler:
                begin, end = scheduler.get('begin', 0), scheduler.get('end', length)
                scheduler.T_max = max(1, min(scheduler.T_max, end - begin))
            if 'milestones' in scheduler:
                scheduler.milestones = [max(1, scaled(point)) for point in scheduler.milestones]
            if scheduler.get('end', length) <= scheduler.get('begin', 0):
                continue  # it has shrunk to nothing
        schedulers.append(scheduler)
    cfg.param_scheduler = schedulers
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint', {})
    if not by_epoch and 'interval' in checkpoint:
        checkpoint.interval = max(1, min(checkpoint.interval, length // 4))
    for hook in cfg.get('custom_hooks', []):
        if 'switch_epoch' in hook:
            hook.switch_epoch = scaled(hook.switch_epoch)
    return cfg


def fit_backbone(cfg: Config, name: str) -> Config:
    """Puts another backbone into a model and gives its channels to the neck and the heads.

    The maps (``out_indices``) and the training settings stay the config's; if it starts from ``timm://`` weights, the
    new net starts from its own (``DEFAULT_TAGS``; of a timm net, timm's default) or, where none are published, from
    random ones. Wherever the neck or a head repeats the old channels at the start of its ``in_channels`` or
    ``out_channels``, or names a map by ``in_index``, the new ones are put.

    Args:
        cfg: A config with ``model.backbone`` of type MobileNetV4.
        name: ``mnv4_`` and a name of ``ARCHS``, e.g. ``mnv4_conv_l``, or ``timm:`` and one of timm's, e.g.
            ``timm:fastvit_sa12``.

    Raises:
        UserError: unknown name, or the net does not fit the config.
    """
    cfg = copy.deepcopy(cfg)
    if cfg.get('model', {}).get('backbone', {}).get('type') != 'MobileNetV4':
        raise UserError('--backbone needs a config whose model.backbone is of type MobileNetV4')
    old = _out_channels(cfg.model.backbone)
    entries = pretrained_entries(cfg.model.backbone.pop('init_cfg', None))
    pretrained = any(entry['checkpoint'].startswith('timm://') for entry in entries)
    if name.startswith('timm:'):
        cfg.model.backbone = _timm_backbone(cfg, name.removeprefix('timm:'))
    else:
        names = [f'mnv4_{arch}' for arch in ARCHS]
        if name not in names:
            raise UserError(f'no backbone {name!r}{_near(name, names)}; or timm:<name of a timm net>')
        cfg.model.backbone.arch = name.removeprefix('mnv4_')
    tag = _default_tag(name)
    if pretrained and tag:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'timm://{tag}')
    elif pretrained and cfg.model.backbone.get('norm_eval'):
        raise UserError(
            f'this config keeps the norm statistics of ImageNet weights and none of {name} are published: put a config '
            'of your own without init_cfg and norm_eval in the backbone'
        )
    _fit_channels(cfg.model, old, _out_channels(cfg.model.backbone))
    return cfg


def _fit_channels(model: Any, old: list[int], new: list[int]) -> None:
    """Puts the new channels where the neck or a head repeats the old ones, or, in mmseg's way, names a map."""
    for part in dicts({key: value for key, value in model.items() if key != 'backbone'}):
        for key in ('in_channels', 'out_channels'):
            value = part.get(key)
            if isinstance(value, list | tuple) and list(value[: len(old)]) == old:
                part[key] = type(value)([*new, *value[len(old) :]])
        if 'neck' not in model and isinstance(part.get('in_index'), int):
            part['in_channels'] = new[part['in_index']]
        if 'neck' not in model and part.get('c1_in_channels'):
            part['c1_in_channels'] = new[0]  # DeepLabV3+ takes its fine map from the first one


def _default_tag(name: str) -> str | None:
    if name.startswith('timm:'):
        return name.removeprefix('timm:')
    return DEFAULT_TAGS.get(name.removeprefix('mnv4_'))


def _timm_backbone(cfg: Config, name: str) -> dict[str, Any]:
    kept = {key: value for key, value in cfg.model.backbone.items() if key not in ('type', 'arch')}
    unknown = kept.keys() - {'out_indices', 'norm_eval', 'drop_path_rate', 'output_stride'}
    if unknown:
        raise UserError(f"timm:{name} does not take {', '.join(sorted(unknown))} of this config's backbone")
    backbone = dict(type='TimmFeatures', name=name, **kept)
    if built_for_one_size(name):
        width, height = cfg.input_size
        if width % 32 or height % 32:
            raise UserError(f'timm:{name} is built for one size of picture; this config keeps the shape of each')
        backbone['img_size'] = (height, width)
        if isinstance(task_of(cfg), Segmentation):
            # Training crops have the one size, test pictures do not: it sees them window by window.
            cfg.model.test_cfg = fit_inference(cfg, 'slide').model.test_cfg
            cfg.model.data_preprocessor.test_cfg = dict(size=(height, width))  # no window is smaller
    return backbone


def _out_channels(backbone: Mapping[str, Any]) -> list[int]:
    try:
        return list(MODELS.build({key: value for key, value in backbone.items() if key != 'init_cfg'}).out_channels)
    except ValueError as error:
        raise UserError(f'the backbone does not fit the config: {error}') from error


def pretrained_files(cfg: Config) -> list[str]:
    """Local files that any part of a model is to be initialised from."""
    sources = [part.get('checkpoint', '') for part in dicts(cfg.model) if part.get('type') == 'Pretrained']
    return [source for source in sources if '://' not in source]


def disagreeing_normalisation(cfg: Config) -> str | None:
    """Says where the data preprocessor is not what the backbone's pretrained weights were trained with; None if it is.

    Known for ``timm://`` tags, and for local files named after one.
    """
    backbone = cfg.model.get('backbone') or {}
    preprocessor = cfg.model.get('data_preprocessor') or {}
    for entry in pretrained_entries(backbone.get('init_cfg')):
        wanted = _normalisation(entry['checkpoint'])
        used = (tuple(preprocessor.get('mean') or ()), tuple(preprocessor.get('std') or ()))
        if wanted is not None and not (_close(used, wanted) and preprocessor.get('bgr_to_rgb')):
            mean, std = wanted
            return (
                f'{entry["checkpoint"]} was trained with RGB pictures of mean={list(mean)} and std={list(std)}; this '
                f'data_preprocessor has mean={list(used[0])}, std={list(used[1])}, '
                f'bgr_to_rgb={bool(preprocessor.get("bgr_to_rgb"))}'
            )
    return None


def lost_weights(before: Config, after: Config) -> str | None:
    """Says where a config would start from ImageNet weights but for another backbone that has none; None elsewhere."""
    entries = [pretrained_entries((cfg.model.get('backbone') or {}).get('init_cfg')) for cfg in (before, after)]
    same = before.model.backbone.get('arch') == after.model.backbone.get('arch')
    if entries[0] and not entries[1] and not same:
        return (
            'no weights of this backbone are published: it starts from random ones, and its score cannot be compared '
            'with those of nets that start from ImageNet weights'
        )
    return None


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def _normalisation(checkpoint: str) -> Normalisation | None:
    """Mean and std (0 to 255, RGB) of known weights: a tag, a file named after one, or any net of timm."""
    name = checkpoint.removeprefix('timm://')
    tag = TAGS.get(name) or TAGS.get(Path(name).name.removesuffix('.safetensors'))
    if tag:
        return tag.normalisation
    return timm_normalisation(name) if checkpoint.startswith('timm://') else None


def _close(a: Normalisation, b: Normalisation) -> bool:
    return all(
        len(x) == len(y) and all(abs(p - q) < 0.01 for p, q in zip(x, y, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def task_of(cfg: Config) -> Task:
    """Detection or segmentation, by the config's ``default_scope``.

    Raises:
        UserError: it is neither mmdet's nor mmseg's.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise UserError(f'default_scope of a config must be one of {", ".join(TASKS)}, got {scope!r}')
    return TASKS[scope]


def build_model(cfg: Config) -> nn.Module:
    """Builds a config's model, with the names of its ``default_scope``."""
    task_of(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def fit_data(cfg: Config, layout: Layout) -> Config:
    """Points the data loaders and evaluators at a user's data set, and the heads at its classes.

    Args:
        cfg: A config.
        layout: What its task's ``find`` recognised.
    """
    cfg, task = copy.deepcopy(cfg), task_of(cfg)
    splits = dict(train_dataloader=layout.train, val_dataloader=layout.val, test_dataloader=layout.val)
    for loader, split in splits.items():
        dataset_split(cfg, loader)
        dataset = innermost_dataset(cfg[loader].dataset)
        task.set_split(dataset, split)
        task.set_classes(dataset, layout)
    for evaluator in EVALUATORS:
        task.set_truth(cfg[evaluator], layout.val)
        # Its score is neither the benchmark's nor the small set's.
        cfg[evaluator].prefix = layout.root.resolve().name
    for part in dicts(cfg.model):
        if 'num_classes' in part:
            part['num_classes'] = len(layout.classes)
    return cfg


def fit_inference(cfg: Config, mode: str) -> Config:
    """Whole pictures at once, or windows of a training crop's size that overlap by a third, their logits averaged.

    Args:
        cfg: A segmentation config.
        mode: ``whole`` or ``slide``. Windows that the config itself sets stay.

    Raises:
        UserError: the config is not of segmentation, or the mode unknown.
    """
    if mode not in ('whole', 'slide'):
        raise UserError(f'--inference must be whole or slide, got {mode!r}')
    if not isinstance(task_of(cfg), Segmentation):
        raise UserError('--inference is for segmentation; a detector always sees the whole picture')
    cfg = copy.deepcopy(cfg)
    windows = cfg.model.test_cfg.get('mode') == 'slide'
    if mode == 'whole':
        cfg.model.test_cfg = dict(mode='whole')
    elif not windows:
        size = cfg.model.data_preprocessor.get('size')  # what training crops are padded to: (height, width)
        if not size:
            raise UserError('--inference slide needs model.data_preprocessor.size, (height, width) of a training crop')
        cfg.model.test_cfg = dict(mode='slide', crop_size=size, stride=tuple(length * 2 // 3 for length in size))
    return cfg


def on_training_pictures(cfg: Config) -> Config:
    """A config whose test set is the training pictures, prepared as for a test, under the prefix ``trained_on``."""
    cfg, task = copy.deepcopy(cfg), task_of(cfg)
    split = dataset_split(cfg, 'train_dataloader')
    task.set_split(innermost_dataset(cfg.test_dataloader.dataset), split)
    task.set_truth(cfg.test_evaluator, split)
    cfg.test_evaluator.prefix = 'trained_on'
    return cfg


def innermost_dataset(dataset: Any) -> Any:
    """The data set below RepeatDataset, MultiImageMixDataset and other wrappers."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def dataset_split(cfg: Config, loader: str) -> Any:
    """The pictures and their truth of a data loader's data set, of the task's kind."""
    dataset = innermost_dataset(cfg[loader].dataset) if loader in cfg else None
    split = task_of(cfg).split(dataset) if dataset else None
    if split is None:
        raise UserError(
            f'{loader} of this config is not one data set with pictures and truth of its own, as these tools need'
        )
    return split


def require_data(cfg: Config, loader: str) -> None:
    """Checks that the data a loader reads is there, and fit.

    Raises:
        UserError: says what was looked for and where, how to fetch it, and what runs without it.
    """
    task_of(cfg).check(dataset_split(cfg, loader), cfg, innermost_dataset(cfg[loader].dataset))


def resolve_data_roots(cfg: Config) -> Config:
    """Lets a config find ``data/`` from any folder: relative paths that are not here but in the repository go there."""
    cfg, task = copy.deepcopy(cfg), task_of(cfg)
    for loader in LOADERS:
        split = dataset_split(cfg, loader)
        found = {name: _resolve(value) if isinstance(value, Path) else value for name, value in split._asdict().items()}
        task.set_split(innermost_dataset(cfg[loader].dataset), split._replace(**found))
    for evaluator, loader in zip(EVALUATORS, LOADERS[1:], strict=True):
        if isinstance(cfg.get(evaluator), list):
            raise UserError(f'{evaluator} of this config is a list; these tools need one evaluator')
        task.set_truth(cfg.get(evaluator, {}), dataset_split(cfg, loader))
    return cfg


def _resolve(path: Path) -> Path:
    return REPOSITORY / path if not path.exists() and (REPOSITORY / path).exists() else path


def dicts(value: Any) -> Iterator[dict]:
    """All dicts inside nested dicts and sequences."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from dicts(item)
