"""Claims: which process makes which run, for processes and machines that share a folder.

A claim is a file that its owner touches while it works. One that has not been touched for a while belongs to a process
that was killed or a machine that was switched off, and is taken over. Imports nothing heavy.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL = 20.0  # seconds between two touches
EXPIRY = 180.0  # seconds without one after which a claim may be taken over


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Claim a run for the time of a context; yields False if another process has it.

    Args:
        folder: Folder of the claims, which all processes share.
        name: Name of the run.
    """
    path = folder / f'{name}.claim'
    if not _take(folder, path):
        yield False
        return
    done = threading.Event()

    def touch() -> None:
        while not done.wait(INTERVAL):
            with suppress(FileNotFoundError):
                os.utime(path)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join()
        with suppress(OSError):
            if path.read_text() == _owner():  # not taken over while this process was suspended
                path.unlink()


def _take(folder: Path, path: Path) -> bool:
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / '.lock'):
        if path.exists() and not _is_abandoned(path):
            return False
        path.write_text(_owner())
    return True


def _owner() -> str:
    return json.dumps(dict(host=socket.gethostname(), process=os.getpid()))


def _is_abandoned(path: Path) -> bool:
    if time.time() - path.stat().st_mtime > EXPIRY:
        return True
    try:
        owner = json.loads(path.read_text())
        return owner['host'] == socket.gethostname() and not Path(f'/proc/{owner["process"]}').exists() and _has_proc()
    except (ValueError, KeyError):
        return False  # being written


def _has_proc() -> bool:
    """Return True where the system lists its processes as folders; Linux does."""
    return Path('/proc/self').exists()
