"""Checksums of files."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK = 2**20


def file_digest(path: str | Path, algorithm: str = 'sha256') -> '_Hash':
    """Hash a file in blocks, like ``hashlib.file_digest``, which Python 3.10 lacks.

    Args:
        path: The file.
        algorithm: Name of the hash algorithm, as in ``hashlib.new``.

    Returns:
        The hash object, with ``digest()`` in bytes and ``hexdigest()`` as text.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, 'rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest
