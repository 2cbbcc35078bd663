"""Checks of files, folders and other values that a user names. Nothing heavy is imported."""

import json
import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mnv4_mm.errors import UserError

ZIP, PICKLE = b'PK', b'\x80'  # first bytes of files of torch.save, since and before torch 1.6
PICKLE_MAGIC = bytes.fromhex('6cfc9c46f9206aa85019')  # torch.serialization.MAGIC_NUMBER as it is pickled
WEIGHTS_SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')
EMPTY = 'empty (an unset variable of the shell?): give a value, or leave it out'


def user_cache() -> Path:
    """Return the package's cache folder, for files that can be created or downloaded again.

    The folder is ``$MNV4_CACHE`` if this variable is set, otherwise ``$XDG_CACHE_HOME/mnv4_mm``, otherwise
    ``~/.cache/mnv4_mm``. An empty variable counts as unset. The folder may not exist yet.
    """
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(os.environ.get('MNV4_CACHE') or os.path.join(cache, 'mnv4_mm'))


def check_not_empty(**options: Any) -> None:
    """Check that no option of the command line is an empty string, or a list that contains an empty string.

    An unset variable of the shell expands to an empty string, which would otherwise be treated like an option that was
    not given.

    Args:
        **options: Values of the options, by name without dashes: ``work_dir`` for ``--work-dir``. None is allowed.

    Raises:
        UserError: An option is empty, or contains an empty string.
    """
    for name, value in options.items():
        if value == '' or (isinstance(value, list | tuple) and '' in value):
            raise UserError(f'argument --{name.replace("_", "-")}: {EMPTY}')


def check_checkpoint(path: str | Path) -> Path:
    """Check that a checkpoint file exists, and that it is as ``torch.save`` wrote it, as far as this can be known.

    ``torch.save`` writes a zip archive, which is compared with the checksums in it, or (before torch 1.6) a pickle, of
    which only the beginning is read: it has no checksums. An archive of 300 MB takes 0.2 s.

    Returns:
        The path.

    Raises:
        UserError: ``path`` is not a path, the file is missing, it is neither a zip archive nor a pickle, or it is
            damaged, compressed or was not written by ``torch.save``.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f'a checkpoint is named by its path, got {path!r}')
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no checkpoint file at {path}{": it is a folder" if path.is_dir() else ""}')
    with path.open('rb') as file:
        start = file.read(32)
    if start.startswith(ZIP):
        _check_archive(path)
    elif not start.startswith(PICKLE):
        content = 'empty' if not start else 'neither a zip archive nor a pickle, the two formats of torch.save'
        raise UserError(f'{path} is not a checkpoint: it is {content}')
    elif PICKLE_MAGIC not in start:
        raise UserError(f'{path} is refused: it is a pickle, but was not written by torch.save')
    return path


def _check_archive(path: Path) -> None:
    """Check a zip archive: ``torch.save`` writes one folder with ``data.pkl``, uncompressed, and CRC-32 checksums.

    ``torch.load`` does not compare the checksums.

    Raises:
        UserError: The list of files cannot be read, there is no such folder, the archive unpacks to more bytes than it
            has, or a file does not match its checksum.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(
            f'{path} is truncated, or was not written by torch.save: it begins as a zip archive, whose list of files '
            'cannot be read'
        ) from error
    with archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        folder = names[0].partition('/')[0] if names else ''
        if f'{folder}/data.pkl' not in names or not all(name.startswith(f'{folder}/') for name in names):
            raise UserError(
                f'{path} is truncated, or was not written by torch.save: it is a zip archive, but not of one folder '
                'with data.pkl'
            )
        unpacked, size = sum(part.file_size for part in parts), path.stat().st_size
        if unpacked > size:
            raise UserError(
                f'{path} is refused: it unpacks to {unpacked} bytes, more than the file has; torch.save compresses '
                'nothing'
            )
        for part in parts:
            # torch.serialization.set_crc32_options(False) writes zeros.
            if part.CRC and not _is_whole(archive, part):
                raise UserError(
                    f'{path} is damaged: {part.filename} in this archive does not match its checksum; copy or download '
                    'the file again'
                )


def _is_whole(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> bool:
    """Return True if a file of an archive can be read and matches its checksum."""
    try:
        with archive.open(part) as file:
            while file.read(2**20):
                pass
    # For damaged headers zipfile raises errors of many kinds, e.g. RuntimeError where a password is asked for.
    except Exception:
        return False
    return True


def check_weights_file(path: str | Path) -> Path:
    """Check that a file of weights exists, has a supported suffix and is not damaged, as far as this can be known.

    Args:
        path: The file, value of the option ``--weights``.

    Returns:
        The path.

    Raises:
        UserError: The file is missing, its suffix is not supported, or it is damaged: see ``check_checkpoint`` and
            ``check_safetensors``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'--weights {path}: no such file; the option takes timm, none, or a .safetensors or .pth file')
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise UserError(f'--weights {path}: expected a file that ends in {", ".join(WEIGHTS_SUFFIXES)}')
    return check_safetensors(path) if path.suffix == '.safetensors' else check_checkpoint(path)


def check_safetensors(path: Path) -> Path:
    """Check that the header of a safetensors file is whole and describes a file of this size.

    The tensors are not read: the format has no checksums.

    Returns:
        The path.

    Raises:
        UserError: The header cannot be read, or describes a file of another size.
    """
    size = path.stat().st_size
    try:
        with path.open('rb') as file:
            (length,) = struct.unpack('<Q', file.read(8))
            if length > size - 8:
                raise ValueError(f'its header has {length} bytes, more than the file')
            header = json.loads(file.read(length))
        end = max((entry['data_offsets'][1] for name, entry in header.items() if name != '__metadata__'), default=0)
        if 8 + length + end != size:
            raise ValueError(f'its header describes a file of {8 + length + end} bytes, and it has {size}')
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        why = error if type(error) is ValueError else 'its header cannot be read'
        raise UserError(f'{path} is not a readable safetensors file, perhaps cut short: {why}') from error
    return path


def check_output_folder(flag: str, folder: str | Path) -> Path:
    """Check that a folder can be written to or, if it does not exist, can be created.

    Args:
        flag: Option that names the folder, e.g. ``--out-dir``, for the message.
        folder: The folder.

    Returns:
        The path of the folder, which is not created.

    Raises:
        UserError: The folder can be neither written to nor created.
    """
    folder = Path(folder)
    if f'{os.path.realpath(folder)}/'.startswith(('/proc/', '/sys/')):
        raise UserError(f'{flag} {folder} cannot be made: /proc and /sys hold no files of users')
    existing = _existing(folder)
    if not existing.is_dir():
        raise UserError(f'{flag} {folder} cannot be made: {existing} is not a folder')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f'{flag} {folder} cannot be written: no permission for {existing}')
    return folder


def make_output_folder(flag: str, folder: str | Path) -> Path:
    """Create a folder and its parents unless they exist, and return its path.

    Arguments and errors are those of ``check_output_folder``.
    """
    folder = check_output_folder(flag, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{flag} {folder} cannot be made: {error.strerror}') from error
    return folder


def _existing(path: Path) -> Path:
    """Return a path or, if it does not exist, the nearest folder above it that does."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_output_file(flag: str, path: str | Path) -> Path:
    """Check that a file can be written. Its folder need not exist yet.

    Args:
        flag: Option that names the file, e.g. ``--out``, for the message.
        path: The file.

    Returns:
        The path. Neither the file nor its folder is created.

    Raises:
        UserError: The path is a folder or a device, or the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f'{flag} {path} is a folder: name a file')
    # /dev/stdout may lead to a regular file, but is itself what would be replaced.
    is_device = os.path.abspath(path).startswith(('/dev/', '/proc/'))
    if is_device or (path.exists() and not path.is_file()):
        raise UserError(f'{flag} {path} is not a regular file, and files are replaced as a whole: name another')
    # The file is written beside its final place and renamed, so its folder must be writable too.
    folder = _existing(path.parent)
    if not folder.is_dir():
        raise UserError(f'{flag} {path} cannot be written: {folder} is not a folder')
    for needed in (folder, path):
        if needed.exists() and not os.access(needed, os.W_OK):
            raise UserError(f'{flag} {path} cannot be written: no permission for {needed}')
    return path


def check_detections_file(out: str | Path) -> None:
    """Check that detections can be written to a file.

    Args:
        out: The file, value of the option ``--out``.

    Raises:
        UserError: The name does not end in ``.json``, or the file cannot be written.
    """
    if Path(out).suffix != '.json':
        raise UserError(f'--out {out}: detections are written in COCO format; name a .json file')
    check_output_file('--out', out)


def check_class_map_folder(out: str | Path) -> None:
    """Check that class maps can be written to a folder.

    Args:
        out: The folder, value of the option ``--out``.

    Raises:
        UserError: ``out`` is a file, or has a suffix and does not exist, or the folder can be neither written to nor
            created.
    """
    if Path(out).is_file() or (Path(out).suffix and not Path(out).is_dir()):
        raise UserError(f'--out {out}: class maps are written as PNG files; name a folder')
    check_output_folder('--out', out)


def check_data(paths: Iterable[Path], hint: str) -> None:
    """Check that the files and folders of a split of a data set exist.

    Args:
        paths: Files and folders.
        hint: Advice on how to get or name the data, appended to the error message.

    Raises:
        UserError: A file or folder does not exist.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f'no data: looked for {path.absolute()}; {hint}')
