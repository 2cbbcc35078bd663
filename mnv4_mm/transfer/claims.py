"""Lock files by which processes and machines that share a folder divide the runs among them.

The owner of a claim touches its file while it works. If the file has not been touched for a while, the process was
killed or its machine switched off, and another process may take the claim over. Imports nothing heavy.
"""

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL = 20.0  # seconds between two touches
EXPIRY = 180.0  # seconds without a touch after which a claim may be taken over


class Claim:
    """A lock file by which this process reserves a run.

    Args:
        path: The lock file.
        token: Content of the file while the claim is held.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.token = token

    def is_held(self) -> bool:
        """Return True if this process still holds the claim.

        If this process is suspended for longer than ``EXPIRY``, another one may take the claim over.
        """
        try:
            return self.path.read_text() == self.token
        except OSError:
            return False


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[Claim | None]:
    """Claim a run for the duration of a context, and release the claim afterwards.

    The claim of another process is taken over if its file has not been touched for ``EXPIRY`` seconds, or if that
    process ran on this machine and has ended.

    Args:
        folder: Folder of the lock files, which all processes share; it is created.
        name: Name of the run.

    Yields:
        The claim; None if another process holds it.
    """
    claim = _take(folder, folder / f'{name}.claim')
    if claim is None:
        yield None
        return
    done = threading.Event()

    def touch() -> None:
        while not done.wait(INTERVAL):
            with suppress(OSError):  # a network file system that is away for a moment
                os.utime(claim.path)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        done.set()
        thread.join()
        with suppress(OSError):
            if claim.is_held():
                claim.path.unlink()


def _take(folder: Path, path: Path) -> Claim | None:
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / '.lock'):
        if path.exists() and not _is_abandoned(folder, path):
            return None
        claim = Claim(path, json.dumps(dict(process=os.getpid(), namespace=_namespace(), token=uuid.uuid4().hex)))
        path.write_text(claim.token)
    return claim


def _is_abandoned(folder: Path, path: Path) -> bool:
    # On a network file system, modification times are by the clock of the server: read the current time there, too.
    now = folder / '.now'
    now.write_text('')
    if now.stat().st_mtime - path.stat().st_mtime > EXPIRY:
        return True
    try:
        owner = json.loads(path.read_text())
        is_here = owner['namespace'] is not None and owner['namespace'] == _namespace()
        return is_here and not Path(f'/proc/{owner["process"]}').exists()
    except (ValueError, KeyError, TypeError):
        return False  # incomplete, e.g. because the disk was full: wait until it expires


def _namespace() -> list[str] | None:
    """Identify the host, boot and PID namespace in which the ids of processes can be compared; None if unknown."""
    try:
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return [socket.gethostname(), boot, os.readlink('/proc/self/ns/pid')]
    except OSError:
        return None
