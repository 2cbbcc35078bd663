"""Data sets, classes and inference mode of a config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mnv4_mm.config.check import own_data_error
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.index import find_data
from mnv4_mm.config.load import load_config
from mnv4_mm.config.nested import on_copy
from mnv4_mm.data.cache import cache_folder
from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.data.held_out import KEY as HELD_OUT
from mnv4_mm.data.prepare import format_split, is_prepared, parse_split, read_split
from mnv4_mm.errors import UserError
from mnv4_mm.models.model_config import dicts
from mnv4_mm.tasks import task_of
from mnv4_mm.tasks.task import Layout
from mnv4_mm.weights.checkpoint import Checkpoint

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')


def set_data(cfg: Config, layout: Layout, allow_dropped: bool = False) -> Config:
    """Use a user's data set in the data loaders and evaluators, and set the number of classes of the heads.

    The test set is the validation split. The prefix of the metrics is the name of the data set's folder.

    Args:
        cfg: A config; changed in place.
        layout: The data set, as ``Task.find`` returns it.
        allow_dropped: Value that ``Task.find`` was called with. It is stored in ``own_data`` of the config, with the
            folder of the data set.

    Returns:
        ``cfg``.

    Raises:
        UserError: A data loader is missing, the config of its data set does not name images and ground truth, an
            evaluator is missing or a list, or an evaluator for detection has no ``ann_file``.
    """
    task = task_of(cfg)
    splits = dict(train_dataloader=layout.train, val_dataloader=layout.val, test_dataloader=layout.val)
    for loader, split in splits.items():
        dataset_split(cfg, loader)
        dataset = innermost_dataset(cfg[loader].dataset)
        task.set_split(dataset, split)
        task.set_classes(dataset, layout)
    for evaluator in EVALUATORS:
        task.set_ground_truth(_evaluator(cfg, evaluator), layout.val)
        # Named after the data set, so that the score is not mistaken for one on the benchmark or the mini data set.
        cfg[evaluator].prefix = layout.root.resolve().name
    for part in dicts(cfg.model):
        if 'num_classes' in part:
            part['num_classes'] = len(layout.classes)
    cfg.own_data = _own_data(layout, allow_dropped)
    return cfg


def _own_data(layout: Layout, allow_dropped: bool, previous: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the value of ``own_data``, by which a config, and so a checkpoint, identifies its data set.

    If the data set has no split of its own, the value includes the split. A checkpoint is then never evaluated on
    images that it was trained on, not even on another machine or without the cache. The split is one string, because
    mmengine takes minutes to write long lists. ``statistics`` describes each split after the check, so that a resumed
    run notices that the data set has changed.
    """
    own: dict[str, Any] = dict(root=str(layout.root.resolve()), allow_dropped=allow_dropped)
    if layout.checked:
        own['statistics'] = {name: split.digest() for name, split in layout.checked.splits.items()}
    split_file = layout.checked.split_file if layout.checked else None
    if split_file:
        own['split'] = format_split({**(previous or {}), **read_split(split_file)})
    return own


def stored_split(cfg: Config) -> dict[str, str]:
    """Return the split stored in a config, image name -> ``train`` or ``val``; empty if there is none."""
    return parse_split((cfg.get('own_data') or {}).get('split') or '{}')


def checkpoint_split(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the ``stored_split`` of the config inside a checkpoint; empty if the checkpoint carries no config.

    Raises:
        UserError: The config inside has more than plain values and registered types.
    """
    return stored_split(checkpoint_config(checkpoint)) if isinstance(checkpoint.meta.get('cfg'), str) else {}


def restore_data(
    cfg: Config,
    previous: Mapping[str, str] | None = None,
    *,
    remedy: str | None = None,
) -> Config:
    """Recognise, check and prepare the data set that a config names by ``own_data``, and set its files in the loaders.

    In the config of a checkpoint, ``own_data`` is the data set of ``--data``. This data set may have changed since
    training, and the cache folder with the prepared files may be gone. In a shipped config, ``own_data`` is a data set
    of the repository.

    A data loader whose paths exist and are not prepared files keeps them. The evaluators are left to
    ``set_data_roots``.

    Args:
        cfg: A config; changed in place if it has ``own_data``.
        previous: Split of an earlier run, image name -> ``train`` or ``val``, used if the config stores none.
        remedy: Advice for the error message if the data set cannot be used. None advises ``--data``.

    Returns:
        ``cfg``.

    Raises:
        UserError: The data set is missing or cannot be used.
    """
    own = cfg.get('own_data')
    if not own:
        return cfg
    task = task_of(cfg)
    classes = innermost_dataset(cfg.test_dataloader.dataset).metainfo.classes
    root, allow_dropped = find_data(Path(own.root)), own.get('allow_dropped', False)
    try:
        previous = stored_split(cfg) or previous
        layout = task.find(str(root), classes=classes, allow_dropped=allow_dropped, previous=previous)
    except UserError as error:
        raise own_data_error(error, remedy) if remedy else own_data_error(error) from error
    prepared = cache_folder(root)
    for loader, split in zip(LOADERS, (layout.train, layout.val, layout.val), strict=True):
        paths = [part for part in dataset_split(cfg, loader) if isinstance(part, Path)] if cfg.get(loader) else []
        # Existing paths that were put into the config by hand are kept.
        if any(
            is_prepared(path) or path.is_relative_to(prepared) or path == Path() or not path.exists() for path in paths
        ):
            task.set_split(innermost_dataset(cfg[loader].dataset), split)
    cfg.own_data = _own_data(layout, allow_dropped, previous)
    return cfg


def find_own_data(cfg: Config, classes: Sequence[str]) -> CheckedData | None:
    """Return the result of checking the data set of ``own_data``; None if the config has no ``own_data``.

    The result is read from the cache if the data set has not changed since its last check.

    Args:
        cfg: A config.
        classes: Class names in the order of labels.
    """
    own = cfg.get('own_data')
    if not own:
        return None
    layout = task_of(cfg).find(
        own.root, classes=classes, allow_dropped=own.get('allow_dropped', False), previous=stored_split(cfg)
    )
    return layout.checked


def data_notes(config: str, layout: Layout) -> list[str]:
    """Return lines of text that describe what a config would train on.

    Args:
        config: Path or name of a config.
        layout: The data set, as ``Task.find`` returns it.

    Returns:
        For detection, the number of images and boxes that are trained on and, if many boxes are too small for the
        anchors, a warning. An empty list for segmentation.

    Raises:
        UserError: Nothing is left to train on, or the config cannot be read.
    """
    cfg = set_data(load_config(config), layout)
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    return task_of(cfg).training_lines(layout.train, cfg, dataset)


def data_lines(cfg: Config) -> list[str]:
    """Return lines of text that describe the data of a training run.

    If the config has ``own_data``, the result of the data check comes first. For detection, the number of images and
    boxes that are trained on follows and, if many boxes are too small for the anchors, a warning. These lines are left
    out for annotation files above 64 MiB that have not been prepared.

    Raises:
        UserError: Nothing is left to train on.
    """
    task = task_of(cfg)
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    checked = find_own_data(cfg, dataset.metainfo.classes) if cfg.get('own_data') else None
    split = dataset_split(cfg, 'train_dataloader')
    lines = [*(checked.summary() if checked else []), *task.training_lines(split, cfg, dataset)]
    if share := cfg.train_dataloader.get(HELD_OUT):
        lines.append(f'about {share:.0%} of these images are held out from training, to score nets')
    return lines


def set_inference(cfg: Config, mode: str) -> Config:
    """Choose the inference mode of a segmenter.

    Args:
        cfg: A segmentation config.
        mode: ``whole`` (whole images at once) or ``slide`` (overlapping windows with averaged logits). Windows that the
            config sets are kept; otherwise they have the size of a training crop and overlap by a third.

    Raises:
        UserError: The config is not for a segmenter, the mode is unknown, or the config does not say how large a
            training crop is.
    """
    if mode not in ('whole', 'slide'):
        raise UserError(f'--inference must be whole or slide, got {mode!r}')
    task_of(cfg).set_inference(cfg, mode)
    return cfg


def set_training_images(cfg: Config) -> Config:
    """Use the training images as the test set, with the test pipeline, and name the metrics ``trained_on/...``."""
    task = task_of(cfg)
    split = dataset_split(cfg, 'train_dataloader')
    task.set_split(innermost_dataset(cfg.test_dataloader.dataset), split)
    task.set_ground_truth(cfg.test_evaluator, split)
    cfg.test_evaluator.prefix = 'trained_on'
    return cfg


def set_data_roots(cfg: Config) -> Config:
    """Resolve the data paths of a config, and set the ground truth of its evaluators.

    A path that does not exist relative to the current folder is taken relative to the repository checkout, if it exists
    there.

    Raises:
        UserError: A data loader is missing, the config of its data set does not name images and ground truth, an
            evaluator is missing or a list, or an evaluator for detection has no ``ann_file``.
    """
    task = task_of(cfg)
    for loader in LOADERS:
        split = dataset_split(cfg, loader)
        paths = {name: find_data(value) for name, value in split._asdict().items() if isinstance(value, Path)}
        task.set_split(innermost_dataset(cfg[loader].dataset), split._replace(**paths))
    for evaluator, loader in zip(EVALUATORS, LOADERS[1:], strict=True):
        task.set_ground_truth(_evaluator(cfg, evaluator), dataset_split(cfg, loader))
    return cfg


def _evaluator(cfg: Config, name: str) -> Any:
    evaluator = cfg.get(name)
    if not isinstance(evaluator, dict):
        found = 'is a list' if isinstance(evaluator, list) else 'is missing'
        raise UserError(f'{name} of this config {found}; these tools need one evaluator')
    return evaluator


with_data = on_copy(set_data)
with_inference = on_copy(set_inference)
with_training_images = on_copy(set_training_images)
with_data_roots = on_copy(set_data_roots)


def dataset_split(cfg: Config, loader: str) -> Any:
    """Return the paths of the images and the ground truth of a data loader's data set.

    Args:
        cfg: A config.
        loader: Key of the data loader, e.g. ``val_dataloader``.

    Returns:
        ``data.coco_files.Split`` for detection, ``data.mask_split.MaskSplit`` for segmentation.

    Raises:
        UserError: There is no such loader, or the config of its data set does not name images and ground truth.
    """
    dataset = innermost_dataset(cfg[loader].dataset) if cfg.get(loader) else None
    split = task_of(cfg).split(dataset) if dataset else None
    if split is None:
        raise UserError(
            f'{loader} of this config is not one data set with images and ground truth, as these tools need'
        )
    return split


def require_data(cfg: Config, loader: str) -> None:
    """Check that the data of a data loader exists and is valid.

    Raises:
        UserError: The data is missing (the message says how to get it) or invalid.
    """
    task_of(cfg).check(dataset_split(cfg, loader), cfg, innermost_dataset(cfg[loader].dataset))
