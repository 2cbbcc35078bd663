"""Exported files and the checkpoints that they were exported from. Needs neither torch nor OpenMMLab."""

import glob
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_checkpoint
from mnv4_mm.runtime.meta import OUTPUTS, Meta, Precision, read_meta, sha256, sidecar


class Artifact(NamedTuple):
    """An exported file and its metadata."""

    path: Path
    meta: Meta

    @property
    def megabytes(self) -> float:
        """Size in MB (10**6 bytes) of all files that the runtime needs, without the JSON of the metadata."""
        return sum((self.path.parent / name).stat().st_size for name in self.meta.files) / 1e6


def find_artifacts(checkpoint: str | Path, files: Sequence[str | Path] = ()) -> tuple[Path, list[Artifact]]:
    """Find the exported files of a checkpoint and check that they were exported from it.

    Args:
        checkpoint: A checkpoint. Or an exported file, which is then put before ``files``, and whose checkpoint
            ``checkpoint_of`` finds.
        files: Exported files. If empty and ``checkpoint`` is a checkpoint, all files that ``exported_files`` finds.

    Returns:
        The path of the checkpoint, and the exported files with their metadata.

    Raises:
        UserError: There is no checkpoint, there are no exported files, or one is missing, damaged or was exported from
            another checkpoint.
    """
    checkpoint = Path(checkpoint)
    if sidecar(checkpoint).is_file():
        files, checkpoint = [checkpoint, *files], checkpoint_of(checkpoint)
    check_checkpoint(checkpoint)
    checksum = sha256(checkpoint)
    paths = [Path(file) for file in files] or exported_files(checkpoint, checksum)
    artifacts = [Artifact(path, read_meta(path)) for path in paths]
    for path, meta in artifacts:
        if meta.source.get('sha256') != checksum:
            raise UserError(
                f'{path} was exported from another checkpoint: {meta.source.get("checkpoint")} with a SHA-256 other '
                f'than that of {checkpoint}'
            )
    return checkpoint, artifacts


def checkpoint_of(path: Path) -> Path:
    """Find the checkpoint that a file was exported from: in the folder above the file's folder, or beside the file.

    The checkpoint is found by the name that the metadata of the file has; its content is not compared.

    Args:
        path: The exported file.

    Raises:
        UserError: The checkpoint is in neither folder, or the exported file is damaged, see ``read_meta``.
    """
    name = Path(read_meta(path).source.get('checkpoint', '')).name  # the name only: a path could lead elsewhere
    candidates = [folder / name for folder in (path.parent.parent, path.parent)]
    checkpoint = next((candidate for candidate in candidates if candidate.is_file()), None)
    if checkpoint is None:
        raise UserError(
            f'{path} was exported from {name}, which is neither beside it nor in the folder above: name the checkpoint '
            'as the first argument'
        )
    return checkpoint


def exported_files(checkpoint: Path, checksum: str) -> list[Path]:
    """Return the files in ``exported/`` beside a checkpoint that were exported from it, sorted by name.

    A file with damaged JSON beside it is among them, since it may be one of them; ``read_meta`` says what is damaged.

    Args:
        checkpoint: The checkpoint.
        checksum: SHA-256 of the checkpoint, to leave out files of an earlier checkpoint of the same name.

    Raises:
        UserError: There are no such files.
    """
    folder = checkpoint.parent / 'exported'
    # The names that ``export`` writes. A glob alone would also find files of checkpoints whose names begin alike.
    kinds, precisions = '|'.join(OUTPUTS), '|'.join(typing.get_args(Precision))
    stem = checkpoint.stem
    name = re.compile(rf'{re.escape(stem)}_({kinds})_({precisions})(_dynamic|_\d+x\d+)?(_normalised)?(_plain)?\.')
    sidecars = [path for path in sorted(folder.glob(f'{glob.escape(stem)}_*.json')) if name.match(path.name)]
    # Leave out the JSON files of samples and layers, which are not beside a file of the same name.
    paths = [path.with_suffix('') for path in sidecars if path.with_suffix('').exists()]
    paths = [path for path in paths if _checkpoint_sum(path) in (checksum, None)]
    if not paths:
        raise UserError(f'no exported files of {checkpoint} in {folder}: name them, or run export first')
    return paths


def _checkpoint_sum(path: Path) -> str | None:
    """Return the SHA-256 of the checkpoint that a file was exported from; None if the JSON beside it is damaged."""
    try:
        return Meta.from_json(sidecar(path).read_bytes(), sidecar(path)).source.get('sha256', '')
    except UserError:
        return None
