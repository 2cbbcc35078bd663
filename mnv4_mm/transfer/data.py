"""The data of transfer runs: splits joined for training and testing, and a digest that identifies them."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines

LISTS = 'ImageSets/Main'  # of Pascal VOC
HASHED = 2**16  # bytes of each image


def join_splits(root: Path, train: Sequence[str], test: Sequence[str], out: Path) -> Path:
    """Make a data set of links, whose ``train`` and ``val`` are given splits of another one.

    Args:
        root: Folder of a data set with a folder for each split, such as ``images/train`` or ``train/images``, or with
            lists as Pascal VOC has them.
        train: Splits to train on.
        test: Splits to evaluate on.
        out: Folder to make; if it exists, it is completed.

    Returns:
        ``root`` itself if these are its ``train`` and ``val`` already, otherwise ``out``.

    Raises:
        UserError: The data set does not have a split, or a file in several.
    """
    if tuple(train) == ('train',) and tuple(test) == ('val',):
        return root
    targets = {**dict.fromkeys(train, 'train'), **dict.fromkeys(test, 'val')}
    has_lists = (root / LISTS).is_dir()
    links = _listed_files(root, targets, out) if has_lists else _files_of_splits(root, targets, out)
    for link, path in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(path.resolve(), link.parent.resolve()))
    return out


def _files_of_splits(root: Path, targets: Mapping[str, str], out: Path) -> dict[Path, Path]:
    """Return the file of each link to make, for a data set with a folder for each split."""
    links: dict[Path, Path] = {}
    found = set()
    for path in sorted(root.rglob('*')):
        parts = path.relative_to(root).parts
        split = next((part for part in parts[:-1] if part in targets), None)
        if split is None or not path.is_file():
            continue
        found.add(split)
        link = out.joinpath(*(targets[part] if part == split else part for part in parts))
        if link in links:
            raise UserError(f'{path} and {links[link]} have the same name, so that their splits cannot be joined')
        links[link] = path
    _check_found(root, targets, found)
    return links


def _listed_files(root: Path, targets: Mapping[str, str], out: Path) -> dict[Path, Path]:
    """Write the lists of the joined splits, and return the file of each link to make."""
    lists = {split: root / LISTS / f'{split}.txt' for split in targets}
    _check_found(root, targets, {split for split, path in lists.items() if path.is_file()})
    for joined in ('train', 'val'):
        names = [name for split, path in lists.items() if targets[split] == joined for name in path.read_text().split()]
        write_whole(out / LISTS / f'{joined}.txt', ''.join(f'{name}\n' for name in names))
    files = (path for path in sorted(root.rglob('*')) if path.is_file() and not path.is_relative_to(root / LISTS))
    return {out / path.relative_to(root): path for path in files}


def _check_found(root: Path, targets: Mapping[str, str], found: Set[str]) -> None:
    missing = sorted(targets.keys() - found)
    if missing:
        raise UserError(f'{root} has no {missing[0]}: this protocol uses the splits {", ".join(targets)}')


def data_digest(cfg: Config) -> str:
    """Return a digest of the images and their labels, in training and test data.

    Of each image count name, size and the first 64 KiB, so that it takes minutes, and not an hour, for COCO.
    """
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
            with image.open('rb') as file:
                start = hashlib.sha256(file.read(HASHED)).hexdigest()
            digest.update(json.dumps([loader, image.name, image.stat().st_size, start, labels]).encode())
        digest.update(json.dumps(built.metainfo['classes']).encode())
    return digest.hexdigest()[:16]
