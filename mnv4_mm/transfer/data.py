"""The data of transfer runs: splits joined for training and testing, and a digest that identifies them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines


def join_splits(root: Path, train: Sequence[str], test: Sequence[str], out: Path) -> Path:
    """Make a data set of links, whose ``train`` and ``val`` are given splits of another one.

    Args:
        root: Folder of a data set with a folder for each split, such as ``images/train`` or ``train/images``.
        train: Splits to train on.
        test: Splits to evaluate on.
        out: Folder to make; if it exists, it is completed.

    Returns:
        ``root`` itself if these are its ``train`` and ``val`` already, otherwise ``out``.

    Raises:
        UserError: The data set has no folder of a split.
    """
    if tuple(train) == ('train',) and tuple(test) == ('val',):
        return root
    targets = {**dict.fromkeys(train, 'train'), **dict.fromkeys(test, 'val')}
    found = set()
    for path in sorted(root.rglob('*')):
        parts = path.relative_to(root).parts
        split = next((part for part in parts[:-1] if part in targets), None)
        if split is None or not path.is_file():
            continue
        found.add(split)
        link = out.joinpath(*(targets[part] if part == split else part for part in parts))
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(path.resolve(), link.parent.resolve()))
    missing = sorted(targets.keys() - found)
    if missing:
        raise UserError(f'{root} has no folder {missing[0]}: this protocol uses the splits {", ".join(targets)}')
    return out


def data_digest(cfg: Config) -> str:
    """Return a digest of the images' names and sizes and of their labels, in training and test data."""
    digest = hashlib.sha256()
    for loader in ('train_dataloader', 'test_dataloader'):
        dataset = innermost_dataset(cfg[loader].dataset).copy()
        dataset['pipeline'] = []
        with without_lines(READING_ANNOTATIONS), DefaultScope.overwrite_default_scope(cfg.default_scope):
            built = DATASETS.build(dataset)
        for i in range(len(built)):
            info = built.get_data_info(i)
            image = Path(info['img_path'])
            labels = (
                file_digest(info['seg_map_path']).hexdigest()
                if info.get('seg_map_path')
                else [[box['bbox'], box['bbox_label'], box['ignore_flag']] for box in info['instances']]
            )
            digest.update(json.dumps([loader, image.name, image.stat().st_size, labels]).encode())
        digest.update(json.dumps(built.metainfo['classes']).encode())
    return digest.hexdigest()[:16]
