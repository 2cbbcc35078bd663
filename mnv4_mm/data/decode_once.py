"""Run a decoder once over each file of a data set, in threads, and remember the results of unchanged files.

A file is unchanged if its size and its times are the same. Imports nothing heavy.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

from mnv4_mm.data.cache import cache_folder, write_cached
from mnv4_mm.processors import cores
from mnv4_mm.version import __version__

MIN_FILES_FOR_PROGRESS = 500  # fewer take about a second
MISSING = 'there is no such file'
BLOCK = 16  # files that a thread decodes in turn

ResultT = TypeVar('ResultT', bound=NamedTuple)


def decode_once(
    root: Path,
    names: Iterable[str],
    decode: Callable[[str], ResultT],
    restore: Callable[[list], ResultT],
    failed: Callable[[str], ResultT],
    what: str,
    version: Sequence,
) -> dict[str, ResultT]:
    """Decode files. Results of unchanged files are taken from the cache.

    Args:
        root: Folder of the data set.
        names: Paths of the files relative to ``root``.
        decode: Returns the result for the path of a file. Called in threads.
        restore: Returns a result, given the list of its values as read from the JSON of the cache.
        failed: Returns the result for a path that is missing or not a file, given the reason.
        what: Plural noun for the files, such as ``'images'``. It names the cache file and is shown at the progress bar.
        version: Version of the decoder. Remembered results of another version are not used.

    Returns:
        Result by name, in the order of ``names``.

    Raises:
        UserError: The cache cannot be written.
    """
    folder = os.fspath(root)
    path = cache_folder(root) / f'{what}.json'
    version = [*version, __version__]
    remembered = _read(path, version)
    states = {name: _state(os.path.join(folder, name)) for name in names}
    results: dict[str, ResultT] = {}
    pending: list[str] = []
    for name, state in states.items():
        if state is None:
            exists = '\0' not in name and os.path.lexists(os.path.join(folder, name))
            results[name] = failed('it is not a file' if exists else MISSING)
        elif name in remembered and remembered[name][:3] == list(state):
            results[name] = restore(remembered[name][3:])
        else:
            pending.append(name)
    if pending:
        try:
            results.update(_decode_all(folder, pending, decode, what))
        finally:  # an interrupted check continues where it was
            entries = {name: [*state, *results[name]] for name, state in states.items() if state and name in results}
            content = dict(version=version, results={**remembered, **entries})
            write_cached(path, json.dumps(content, default=dict))
    return {name: results[name] for name in states}


def _state(path: str) -> tuple[int, int, int] | None:
    """Return size, modification and change time of a file; None if there is none, or it is no regular file."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return (state.st_size, state.st_mtime_ns, state.st_ctime_ns) if stat.S_ISREG(state.st_mode) else None


def _read(path: Path, version: list) -> dict[str, list]:
    """Read the results of earlier calls; empty if the file is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_bytes())
        return content['results'] if content['version'] == version else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _decode_all(
    folder: str, names: Sequence[str], decode: Callable[[str], ResultT], what: str
) -> Iterator[tuple[str, ResultT]]:
    from rich.console import Console
    from rich.progress import Progress

    def decode_some(some: Sequence[str]) -> list[ResultT]:
        return [decode(os.path.join(folder, name)) for name in some]

    blocks = [names[start : start + BLOCK] for start in range(0, len(names), BLOCK)]
    pool = ThreadPoolExecutor(cores())  # threads: OpenCV decodes without Python's lock
    progress = Progress(console=Console(stderr=True))
    try:
        # Not `disable`: up to rich 14.2 a disabled bar prints an empty line.
        with progress if len(names) >= MIN_FILES_FOR_PROGRESS else nullcontext():
            task = progress.add_task(f'reading {what}', total=len(names))
            for block, results in zip(blocks, pool.map(decode_some, blocks), strict=True):
                yield from zip(block, results, strict=True)
                progress.advance(task, len(block))
    finally:
        pool.shutdown(cancel_futures=True)


def reason(error: Exception, path: str) -> str:
    """Return the message of an error about a file without the file's path: 'it is not a readable image'."""
    return str(error).replace(f'{path} is ', 'it is ').replace(f'{path} ', 'it ')
