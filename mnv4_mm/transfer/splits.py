"""Joining of the splits of a data set for training and testing, by symbolic links. Imports nothing heavy."""

import json
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from filelock import FileLock

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole

LISTS = 'ImageSets/Main'  # of Pascal VOC


def join_splits(root: Path, train: Sequence[str], test: Sequence[str], out: Path) -> Path:
    """Make a data set of symbolic links that joins splits of another data set to ``train`` and ``val``.

    Args:
        root: Folder of a data set with a folder for each split, such as ``images/train`` or ``train/images``, or with
            lists as in Pascal VOC.
        train: Splits to train on, joined as ``train``.
        test: Splits to evaluate on, joined as ``val``.
        out: Folder to make. In one that was made before, links are added, renewed and removed as the data set has
            changed. The file ``.<name>.json`` beside it says which splits it joins.

    Returns:
        ``out``. If ``train`` is only the split ``train`` and ``test`` only the split ``val``, no links are needed, and
        ``root`` is returned.

    Raises:
        UserError: A split is missing, splits to be joined have files of the same name, or ``out`` is another folder or
            joins other splits. It is not changed then.
    """
    if tuple(train) == ('train',) and tuple(test) == ('val',):
        return root
    targets = {**dict.fromkeys(train, 'train'), **dict.fromkeys(test, 'val')}
    lists = _joined_lists(root, targets, out) if (root / LISTS).is_dir() else {}
    links = _all_files(root, out) if lists else _files_of_splits(root, targets, out)
    relative = {link: Path(os.path.relpath(path.resolve(), link.parent.resolve())) for link, path in links.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f'.{out.name}.lock')):  # several commands may start at the same time
        _check_folder(out, root, dict(train=list(train), test=list(test)))
        for link in relative:
            if link.exists() and not link.is_symlink():
                raise UserError(f'{link} is no link to a file of {root} any more: name another folder by --out')
        out.mkdir(exist_ok=True)
        for path in out.rglob('*'):
            if path.is_symlink() and path not in links:
                path.unlink()
        for path, names in lists.items():
            write_whole(path, names)
        for link, target in relative.items():
            if not link.is_symlink() or link.readlink() != target:
                link.parent.mkdir(parents=True, exist_ok=True)
                new = link.with_name('.link.new')
                new.unlink(missing_ok=True)  # of a command that was killed
                new.symlink_to(target)
                new.replace(link)  # in one step, as other processes may read it
    return out


def _check_folder(out: Path, root: Path, splits: Mapping[str, list[str]]) -> None:
    """Check that a folder does not exist or joins the given splits of a data set, and note them beside it.

    Raises:
        UserError: The folder was not made by ``join_splits``, or with another data set or other splits.
    """
    note = out.with_name(f'.{out.name}.json')
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        # Relative, as the links are: both can be moved together.
        write_whole(note, json.dumps(dict(root=os.path.relpath(root.resolve(), out.parent.resolve()), **splits)))
        return
    if not note.is_file():
        raise UserError(f'{out} was not made by this version of the command: name another folder by --out')
    known = json.loads(note.read_text(encoding='utf-8'))
    if (out.parent / known.pop('root')).resolve() != root.resolve() or known != splits:
        raise UserError(f'{out} has another data set or other splits: name another folder by --out')


def _files_of_splits(root: Path, targets: Mapping[str, str], out: Path) -> dict[Path, Path]:
    """Return the target of each link to make, for a data set with a folder for each split."""
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


def _joined_lists(root: Path, targets: Mapping[str, str], out: Path) -> dict[Path, str]:
    """Return path and content of the lists of the joined splits."""
    lists = {split: root / LISTS / f'{split}.txt' for split in targets}
    _check_found(root, targets, {split for split, path in lists.items() if path.is_file()})
    return {
        out / LISTS / f'{joined}.txt': ''.join(
            f'{name}\n'
            for split, path in lists.items()
            if targets[split] == joined
            for name in path.read_text().split()
        )
        for joined in ('train', 'val')
    }


def _all_files(root: Path, out: Path) -> dict[Path, Path]:
    """Return the target of each link to make, for a data set whose splits are lists."""
    files = (path for path in sorted(root.rglob('*')) if path.is_file() and not path.is_relative_to(root / LISTS))
    return {out / path.relative_to(root): path for path in files}


def _check_found(root: Path, targets: Mapping[str, str], found: Set[str]) -> None:
    missing = sorted(targets.keys() - found)
    if missing:
        raise UserError(f'{root} has no {missing[0]}: this protocol uses the splits {", ".join(targets)}')
