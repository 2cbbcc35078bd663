"""Files that pass for checkpoints until they are loaded, written without torch."""

import pickle
import zipfile
from pathlib import Path
from typing import Any


def write_stub_checkpoint(path: Path, meta: dict[str, Any] | None = None, name: str = 'net/data.pkl') -> Path:
    """Write an archive as ``torch.save`` does, with a pickle and no weights.

    Args:
        path: File to write.
        meta: Metadata: ``cfg``, ``epoch``, ...
        name: Name of the pickle in the archive.
    """
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(name, pickle.dumps({'meta': meta or {}}, protocol=2))
    return path
