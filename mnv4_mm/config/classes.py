"""Match the classes of data and checkpoint by name: labels follow the order of the checkpoint's classes."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mnv4_mm.config.data import LOADERS
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import Checkpoint

FINE_TUNE = 'a training with --cfg-options load_from={path} starts from its weights, for other classes too'


def set_label_order(cfg: Config) -> Config:
    """Make the labels of each data set follow the class names in its config.

    mmdet numbers the labels in the order of the categories in the annotation file instead. Where the two orders differ,
    the type of the data set becomes ``NamedCocoDataset``. Segmentation needs no change.

    Args:
        cfg: A config; changed in place.

    Returns:
        ``cfg``.

    Raises:
        UserError: An annotation file is invalid, or has no category for a class.
    """
    task = task_of(cfg)
    for loader in LOADERS:
        if cfg.get(loader):
            task.check_label_order(cfg, innermost_dataset(cfg[loader].dataset))
    return cfg


def set_classes_of(cfg: Config, checkpoint: Checkpoint, *, fine_tuning: bool = False) -> str | None:
    """Reorder the labels of the data to follow the classes of a checkpoint.

    Args:
        cfg: Config with the data sets of a run; changed in place.
        checkpoint: Checkpoint that the run evaluates, resumes or starts from.
        fine_tuning: Allow data with other classes, whose labels then stay as they are.

    Returns:
        A message that the classes were matched by name; None if no data set was changed. A data set is not changed if
        it has the order of the checkpoint, or if the checkpoint or the data set does not name its classes.

    Raises:
        UserError: The data have other classes than the checkpoint, or a data set cannot be reordered.
    """
    trained_on = checkpoint_classes(checkpoint)
    if trained_on is None:
        return None
    matched = False
    for loader in LOADERS:
        if not cfg.get(loader):
            continue
        dataset = innermost_dataset(cfg[loader].dataset)
        classes = dataset_classes(cfg, dataset)
        if classes is None or classes == trained_on:
            continue
        if set(classes) == set(trained_on) and len(classes) == len(trained_on):
            task_of(cfg).set_class_order(cfg, dataset, classes, trained_on)
            matched = True
        elif not fine_tuning:
            raise UserError(
                f'{checkpoint.path} was trained on other classes than the data has: {listed(trained_on, classes)} '
                f'there, {listed(classes, trained_on)} here. It can be tested and resumed with its own classes only; '
                f'{FINE_TUNE.format(path=checkpoint.path)}'
            )
    return f'the data list the classes in another order than {checkpoint.path}: matched by name' if matched else None


def checkpoint_classes(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Return the classes that a checkpoint was trained on, in the order of labels; None if it does not name them."""
    meta = checkpoint.meta.get('dataset_meta')
    if not isinstance(meta, dict):
        return None
    classes = meta.get('classes', meta.get('CLASSES'))  # mmdet 2 wrote the key in capitals
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else None


def dataset_classes(cfg: Config, dataset: Any) -> tuple[str, ...] | None:
    """Return the class names of a data set in the order of labels.

    Args:
        cfg: The config that the data set is part of. The type of the data set is looked up in its ``default_scope``.
        dataset: Config of the data set.

    Returns:
        ``metainfo.classes`` of the data set's config, or else the classes in ``METAINFO`` of its type; None if neither
        exists.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset.type
        if isinstance(kind, str):
            with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
                kind = registry.get(kind)
        classes = getattr(kind, 'METAINFO', {}).get('classes')
    return tuple(classes) if isinstance(classes, list | tuple) else None


def listed(classes: Sequence[str], others: Sequence[str]) -> str:
    """List up to eight classes, beginning with those that are missing from ``others``."""
    ordered = [*(name for name in classes if name not in others), *(name for name in classes if name in others)]
    more = f', ... ({len(ordered)} in all)' if len(ordered) > 8 else ''
    return f'{", ".join(ordered[:8])}{more}'
