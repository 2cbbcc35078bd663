"""The config of a transfer run: the recipe that all runs of a head share, and the values that a run changes in it."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mnv4_mm.config.backbone import set_backbone
from mnv4_mm.config.input_size import set_size
from mnv4_mm.config.load import load_config, set_options
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.training import training_config
from mnv4_mm.models.model_config import dicts
from mnv4_mm.models.timm_features import timm_normalisation
from mnv4_mm.tasks import task_of
from mnv4_mm.transfer.bootstrap import RESAMPLES
from mnv4_mm.transfer.data import data_digest
from mnv4_mm.transfer.protocol import Head, Protocol, Run
from mnv4_mm.weights.tags import DEFAULT_TAGS, TAGS

# Raised by hand when a change of the code changes training or measurement under the same config, so that records from
# before and after the change are not put into the same table.
VERSION = 1
DRY_IMAGES = 4
LOG_INTERVAL = 10  # steps between two points of the logged loss
# Settings of a config that change neither training nor evaluation, and are left out of the digest.
DISPLAY = ('report', 'report_on_training_images', 'visualizer', 'vis_backends', 'log_level', 'log_processor')
# Transforms that load the labels; ``ShuffleLabels`` is inserted after the last of them.
LOADING = ('LoadAnnotations', 'LoadMask', 'SegAugmentation')


def head_config(head: Head) -> Config:
    """Return the config of a head, with its ``input_size`` and the values of its ``cfg_options``."""
    cfg = load_config(head.config)
    if head.input_size:
        set_size(cfg, head.input_size)
    return set_options(cfg, head.cfg_options)


def recipe_digest(protocol: Protocol, head: Head) -> str:
    """Return a digest of all settings that the runs of a head share.

    The names of the splits to train and test on are included. The data itself, ``Head.size`` (the input size of the
    exported file) and the settings ``DISPLAY`` are not. Records with different digests are never compared.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.
    """
    values = dict(
        version=VERSION,
        config={key: value for key, value in head_config(head).to_dict().items() if key not in DISPLAY},
        # ``size`` is of the exported file only, ``input_size`` is in the config, and ``minutes`` is an estimate.
        head={key: value for key, value in asdict(head).items() if key not in ('size', 'input_size', 'minutes')},
        train=list(protocol.train),
        test=list(protocol.test),
        resamples=RESAMPLES,
        block=protocol.block,
        **({'teacher': asdict(protocol.teacher)} if protocol.teacher else {}),
    )
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def head_data_digest(head: Head, data: str | None) -> str:
    """Return the digest of the data that the runs of a head are trained and tested on, see ``data.data_digest``.

    Args:
        head: The head.
        data: Folder of the data set, with its splits already joined; None to use the data of the config.

    Raises:
        UserError: The config or the data is invalid, or they do not fit each other.
    """
    options = TrainOptions(
        data=data,
        weights='none',
        cfg_options=head.cfg_options,
        epochs=head.epochs,
        iters=head.iters,
        size=head.input_size,
    )
    return data_digest(training_config(head.config, options, log=lambda line: None))


def run_options(head: Head, run: Run, data: str | None, *, evaluations: int = 0, dry: bool = False) -> dict[str, Any]:
    """Return the values that a run replaces in its config, by dotted key such as ``randomness.seed``.

    Args:
        head: Head of the run.
        run: The run.
        data: Folder of the data set, with its splits already joined; None to use the data of the config.
        evaluations: Least number of evaluations during the training; 0 for none.
        dry: Use only ``DRY_IMAGES`` images of each split, and a batch size of 2 for training.
    """
    return {
        **head.cfg_options,
        **_validation_options(head, 0 if dry else evaluations),
        'default_hooks.checkpoint.interval': 10**9,
        'default_hooks.logger.interval': LOG_INTERVAL,
        'randomness.seed': run.seed,
        **_start_options(run),
        **_control_options(head, run, data),
        **(_few_images(head) if dry else {}),
    }


def _validation_options(head: Head, evaluations: int) -> dict[str, Any]:
    """Return the values that evaluate at least ``evaluations`` times. No checkpoint is selected by its score."""
    if not evaluations:
        return {'train_cfg.val_begin': 10**9}
    interval = max(1, (head.iters or head.epochs or 1) // evaluations)
    return {
        'train_cfg.val_begin': interval,
        'train_cfg.val_interval': interval,
        'default_hooks.checkpoint.save_best': None,
    }


def _start_options(run: Run) -> dict[str, Any]:
    """Return the values for runs that start from ImageNet weights, so that MobileNetV4 and timm nets are treated alike.

    Images are normalised as the weights expect. The norms of MobileNetV4 are trained, as in timm nets, although
    ``--data`` would freeze their statistics.
    """
    if run.start != 'imagenet':
        return {}
    values: dict[str, Any] = {}
    if run.net.startswith('timm:'):
        normalisation = timm_normalisation(run.net.removeprefix('timm:'))
    else:
        values['model.backbone.norm_eval'] = False
        tag = TAGS.get(DEFAULT_TAGS.get(run.net.removeprefix('mnv4_'), ''))
        normalisation = tag and tag.normalisation
    if normalisation:
        mean, std = normalisation
        values.update({'model.data_preprocessor.mean': list(mean), 'model.data_preprocessor.std': list(std)})
    return values


def _control_options(head: Head, run: Run, data: str | None) -> dict[str, Any]:
    """Return the values that turn a run into a control; none for other runs."""
    cfg = head_config(head)
    if run.control == 'zeroed':
        set_backbone(cfg, run.net)
        backbone = {key: value for key, value in cfg.model.backbone.items() if key != 'init_cfg'}
        return {'model.backbone': dict(type='ZeroedDeepest', backbone=backbone, _delete_=True)}
    if run.control != 'shuffled':
        return {}
    key, dataset = _innermost(cfg.train_dataloader.dataset, 'train_dataloader.dataset')
    given = (part['num_classes'] for part in dicts(cfg.model) if 'num_classes' in part)
    classes = len(task_of(cfg).find(data).classes) if data else next(given)
    steps = [dict(step) for step in dataset.pipeline]
    after = 1 + max(i for i, step in enumerate(steps) if step['type'].rpartition('.')[2] in LOADING)
    shuffle = dict(type='ShuffleLabels', num_classes=classes, seed=run.seed)
    return {f'{key}.pipeline': [*steps[:after], shuffle, *steps[after:]]}


def _few_images(head: Head) -> dict[str, Any]:
    """Return the values that limit a config to a few images."""
    values: dict[str, Any] = {'train_dataloader.batch_size': 2}
    cfg = head_config(head)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        key, _ = _innermost(cfg[loader].dataset, f'{loader}.dataset')
        values[f'{key}.indices'] = DRY_IMAGES
    return values


def _innermost(dataset: Any, key: str) -> tuple[str, Any]:
    """Return the key and the config of the data set inside wrappers such as RepeatDataset."""
    while 'pipeline' not in dataset:
        key, dataset = f'{key}.dataset', dataset.dataset
    return key, dataset


def weights_of(run: Run, folder: str | None) -> str | None:
    """Return the weights that the backbone of a run starts from.

    Args:
        run: The run.
        folder: Folder of ImageNet weights, see ``Job.weights_dir``; None to use the published weights.

    Returns:
        None for random weights. Otherwise the path of the file for the backbone in ``folder``, or ``timm``, the weights
        that timm publishes, if there is no such file.
    """
    if run.start == 'random':
        return None
    for suffix in ('.safetensors', '.pth'):
        path = Path(folder or '') / (run.net.removeprefix('timm:') + suffix)
        if folder and path.is_file():
            return str(path)
    return 'timm'
