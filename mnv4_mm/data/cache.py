"""Cache of a user's data sets between commands, in the user's cache folder. Imports nothing heavy.

The cache of a data set is ``data/<name of the folder>-<digest of its path>/`` in ``paths.user_cache()``. The cache may
be deleted at any time: missing files are made again, and a run keeps its split in its config.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mnv4_mm.files import write_whole
from mnv4_mm.paths import user_cache

HINT = '; the checked data is kept there: set MNV4_CACHE to use another folder'


def cache_folder(root: Path) -> Path:
    """Return the path of a data set's cache folder. The folder need not exist."""
    root = root.resolve()
    name = ''.join(char if char.isalnum() or char in '-_' else '_' for char in root.name)[:40]
    return user_cache() / 'data' / f'{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}'


def write_cached(path: Path, content: str | bytes) -> None:
    """Write a file of the cache.

    Raises:
        UserError: The file cannot be written.
    """
    write_whole(path, content, hint=HINT)


def folder_state(root: Path) -> str:
    """Return a digest of the names, sizes and times of all files in a folder and below.

    The times include the change time of the inode, which reveals edits whose modification time was set back. Hidden
    folders are skipped. Links are followed, each folder once.
    """
    digest = hashlib.sha256()
    for name, *state in sorted(_files(root)):
        digest.update('\0'.join(map(str, [name, *state, ''])).encode(errors='surrogateescape'))
    return digest.hexdigest()


def _files(root: Path) -> Iterator[tuple[str, int, int, int]]:
    pending, visited = [('', root)], set()
    while pending:
        prefix, folder = pending.pop()
        try:
            place = folder.stat()
            entries = list(os.scandir(folder))
        except OSError:  # removed meanwhile, or not permitted: the reader of its files reports that
            continue
        if (place.st_dev, place.st_ino) in visited:
            continue
        visited.add((place.st_dev, place.st_ino))
        for entry in entries:
            try:
                state = entry.stat()
            except OSError:  # a broken link
                yield prefix + entry.name, -1, -1, -1
                continue
            if stat.S_ISDIR(state.st_mode):
                if not entry.name.startswith('.'):
                    pending.append((f'{prefix}{entry.name}/', Path(entry.path)))
            else:
                yield prefix + entry.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns
