"""Config name or path -> the config that runs: index, merge of arguments, fit of backbone, data and classes.

Pure functions: they take a config and return another; none builds a Runner or touches a data set.
"""

import colorsys
import copy
import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mnv4_mm.data.coco import CocoLayout, Split
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS
from mnv4_mm.models.pretrained import pretrained_entries
from mnv4_mm.models.tags import DEFAULT_TAGS, TAGS
from mnv4_mm.models.timm_features import built_for_one_size, timm_normalisation

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / 'configs'
# Top-level keys that something reads once the config file has been read. Other names of a config file (`batch_size`)
# have done their work by then.
READ_KEYS = {
    *inspect.signature(Runner.__init__).parameters, 'compile', 'custom_imports', 'find_unused_parameters',
    'model_wrapper_cfg', 'sync_bn', 'report_on_training_pictures',
} - {'self', 'cfg'}  # fmt: skip
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')


def config_index() -> dict[str, Path]:
    """Names of the shipped configs (file stem) and their paths, without the parts in ``_base_``."""
    paths = CONFIGS.rglob('*.py')
    return {path.stem: path for path in sorted(paths) if '_base_' not in path.parts}


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
    on_gpu: bool = False,
    backbone: str | None = None,
    layout: CocoLayout | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    epochs: int | None = None,
) -> Config:
    """The config that ``tools/train.py`` runs. ``options`` are merged last: what a user spells out wins.

    Args:
        cfg: A loaded config.
        name: Its name, for the default work directory ``work_dirs/<name>[_<backbone>][_<data>]``.
        work_dir: Where to write instead.
        resume: Continue: the work directory's last checkpoint if True, else this checkpoint.
        amp: Mixed precision: float16 with loss scaling on a GPU, bfloat16 on the CPU.
        on_gpu: Whether training will run on a GPU.
        backbone: See ``fit_backbone``.
        layout: A user's data set, see ``fit_data``.
        options: See ``merge_options``.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.
        auto_scale_lr: Scale the learning rate by real batch size / ``auto_scale_lr.base_batch_size``.
        epochs: See ``fit_epochs``.
    """
    parts = [name]
    if backbone:
        cfg = fit_backbone(cfg, backbone)
        parts.append(backbone)
    if layout:
        cfg = fit_data(cfg, layout)
        parts.append(layout.root.resolve().name)
    cfg = fit_epochs(cfg, epochs) if epochs is not None else copy.deepcopy(cfg)
    if amp:
        kind = dict(type='AmpOptimWrapper', loss_scale='dynamic') if on_gpu else dict(type='Bf16OptimWrapper')
        cfg.optim_wrapper.update(kind)
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'--auto-scale-lr: {name} names no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    cfg.launcher = launcher
    if launcher != 'none':
        cfg.env_cfg.dist_cfg.backend = 'nccl' if on_gpu else 'gloo'
        if on_gpu:
            cfg.sync_bn = 'torch'
        else:  # mmengine would wrap the model for GPU LOCAL_RANK
            cfg.model_wrapper_cfg = dict(
                type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False, find_unused_parameters=False
            )
    cfg.work_dir = work_dir or str(Path('work_dirs') / '_'.join(parts))
    cfg.resume = bool(resume)
    if isinstance(resume, str):
        cfg.load_from = resume
    return merge_options(cfg, options or {})


def fit_epochs(cfg: Config, epochs: int) -> Config:
    """Shortens or stretches a schedule to another number of epochs, everything counted in epochs in proportion.

    Raises:
        UserError: not a positive number, or the config counts in iterations.
    """
    before = cfg.get('train_cfg', {}).get('max_epochs')
    if epochs < 1 or not before:
        raise UserError(f'--epochs must be at least 1 and the config must count in epochs, got {epochs}')
    cfg = copy.deepcopy(cfg)

    def scaled(epoch: int) -> int:
        return round(epoch * epochs / before)

    cfg.train_cfg.max_epochs = epochs
    cfg.train_cfg.val_interval = max(1, scaled(cfg.train_cfg.get('val_interval', 1)))
    if 'dynamic_intervals' in cfg.train_cfg:
        cfg.train_cfg.dynamic_intervals = [(scaled(start), every) for start, every in cfg.train_cfg.dynamic_intervals]
    schedulers = []
    for scheduler in cfg.param_scheduler:
        if scheduler.get('by_epoch', True):
            for key in ('begin', 'end', 'T_max'):
                if key in scheduler:
                    scheduler[key] = scaled(scheduler[key])
            if 'T_max' in scheduler:
                begin, end = scheduler.get('begin', 0), scheduler.get('end', epochs)
                scheduler.T_max = max(1, min(scheduler.T_max, end - begin))
            if 'milestones' in scheduler:
                scheduler.milestones = [max(1, scaled(epoch)) for epoch in scheduler.milestones]
            if scheduler.get('end', epochs) <= scheduler.get('begin', 0):
                continue  # it has shrunk to nothing
        schedulers.append(scheduler)
    cfg.param_scheduler = schedulers
    for hook in cfg.get('custom_hooks', []):
        if 'switch_epoch' in hook:
            hook.switch_epoch = scaled(hook.switch_epoch)
    return cfg


def fit_backbone(cfg: Config, name: str) -> Config:
    """Puts another backbone into a model and gives its channels to the neck and the heads.

    The maps (``out_indices``) and the training settings stay the config's; if it starts from ``timm://`` weights, the
    new net starts from its own (``DEFAULT_TAGS``; of a timm net, timm's default). Wherever the neck or a head repeats
    the old channels at the start of its ``in_channels`` or ``out_channels``, the new ones are put.

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
    if pretrained:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'timm://{_default_tag(name)}')
    new = _out_channels(cfg.model.backbone)
    for part in _dicts({key: value for key, value in cfg.model.items() if key != 'backbone'}):
        for key in ('in_channels', 'out_channels'):
            value = part.get(key)
            if isinstance(value, list | tuple) and list(value[: len(old)]) == old:
                part[key] = type(value)([*new, *value[len(old) :]])
    return cfg


def _default_tag(name: str) -> str:
    if name.startswith('timm:'):
        return name.removeprefix('timm:')
    arch = name.removeprefix('mnv4_')
    if arch not in DEFAULT_TAGS:
        raise UserError(
            f'this config starts from ImageNet weights and none of {name} are published: put a config of your own '
            'without init_cfg and norm_eval in the backbone'
        )
    return DEFAULT_TAGS[arch]


def _timm_backbone(cfg: Config, name: str) -> dict[str, Any]:
    kept = {key: value for key, value in cfg.model.backbone.items() if key not in ('type', 'arch')}
    unknown = kept.keys() - {'out_indices', 'norm_eval', 'drop_path_rate'}
    if unknown:
        raise UserError(f"timm:{name} does not take {', '.join(sorted(unknown))} of this config's backbone")
    backbone = dict(type='TimmFeatures', name=name, **kept)
    if built_for_one_size(name):
        width, height = cfg.input_size
        if width % 32 or height % 32:
            raise UserError(f'timm:{name} is built for one size of picture; this config keeps the shape of each')
        backbone['img_size'] = (height, width)
    return backbone


def _out_channels(backbone: Mapping[str, Any]) -> list[int]:
    try:
        return list(MODELS.build({key: value for key, value in backbone.items() if key != 'init_cfg'}).out_channels)
    except ValueError as error:
        raise UserError(f'the backbone does not fit the config: {error}') from error


def pretrained_files(cfg: Config) -> list[str]:
    """Local files that any part of a model is to be initialised from."""
    sources = [part.get('checkpoint', '') for part in _dicts(cfg.model) if part.get('type') == 'Pretrained']
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


def fit_data(cfg: Config, layout: CocoLayout) -> Config:
    """Points the data loaders and evaluators at a data set in COCO's layout, and the heads at its classes."""
    cfg = copy.deepcopy(cfg)
    splits = dict(train_dataloader=layout.train, val_dataloader=layout.val, test_dataloader=layout.val)
    for loader, split in splits.items():
        dataset = innermost_dataset(cfg[loader].dataset)
        set_split(dataset, split)
        dataset.metainfo = dict(classes=layout.classes, palette=_palette(len(layout.classes)))
    for evaluator in EVALUATORS:
        cfg[evaluator].ann_file = str(layout.val.annotations)
        # Its AP is neither COCO's nor the small set's.
        cfg[evaluator].prefix = layout.root.resolve().name
    for part in _dicts(cfg.model):
        if 'num_classes' in part:
            part['num_classes'] = len(layout.classes)
    return cfg


def _palette(count: int) -> list[tuple[int, int, int]]:
    """A colour (RGB, 0 to 255) for each class, all round the colour wheel."""
    colours = [colorsys.hsv_to_rgb(i / count, 0.8, 0.9) for i in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def on_training_pictures(cfg: Config) -> Config:
    """A config whose test set is the training pictures, prepared as for a test, under the prefix ``trained_on``."""
    cfg = copy.deepcopy(cfg)
    split = dataset_split(cfg, 'train_dataloader')
    set_split(innermost_dataset(cfg.test_dataloader.dataset), split)
    cfg.test_evaluator.ann_file = str(split.annotations)
    cfg.test_evaluator.prefix = 'trained_on'
    return cfg


def innermost_dataset(dataset: Any) -> Any:
    """The data set below RepeatDataset, MultiImageMixDataset and other wrappers."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def dataset_split(cfg: Config, loader: str) -> Split:
    """Annotation file and picture folder of a data loader's data set, as mmengine's BaseDataset joins them."""
    dataset: Any = innermost_dataset(cfg[loader].dataset) if loader in cfg else {}
    if not {'ann_file', 'data_prefix'} <= dataset.keys():
        raise UserError(
            f'{loader} of this config is not one data set with ann_file and data_prefix, as these tools need'
        )
    root = Path(dataset.get('data_root') or '')
    return Split(root / dataset.ann_file, root / dataset.data_prefix.img)


def set_split(dataset: Any, split: Split) -> None:
    """Points a data set's config at an annotation file and a picture folder."""
    dataset.data_root = ''
    dataset.ann_file = str(split.annotations)
    dataset.data_prefix = dict(img=str(split.pictures))


def resolve_data_roots(cfg: Config) -> Config:
    """Lets a config find ``data/`` from any folder: relative paths that are not here but in the repository go there."""
    cfg = copy.deepcopy(cfg)
    for loader in LOADERS:
        split = dataset_split(cfg, loader)
        set_split(innermost_dataset(cfg[loader].dataset), Split(*map(_resolve, split)))
    for evaluator in EVALUATORS:
        if 'ann_file' not in cfg.get(evaluator, {}):
            raise UserError(f'{evaluator} of this config is not one CocoMetric with ann_file, as these tools need')
        cfg[evaluator].ann_file = str(_resolve(Path(cfg[evaluator].ann_file)))
    return cfg


def _resolve(path: Path) -> Path:
    return REPOSITORY / path if not path.exists() and (REPOSITORY / path).exists() else path


def _dicts(value: Any) -> Iterator[dict]:
    """All dicts inside nested dicts and sequences."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _dicts(item)
