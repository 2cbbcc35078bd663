"""Download the public data sets, with resuming and checksums."""

import shutil
import urllib.error
import urllib.request
import zipfile
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.paths import make_output_folder

BLOCK = 2**20
TIMEOUT = 60  # seconds without a byte


class Archive(NamedTuple):
    """A zip file of a data set.

    Attributes:
        url: Address of the file.
        size: Approximate size of the file in bytes, for the check of free space. The server sends the exact size.
        checksum: Algorithm and hexadecimal digest, e.g. ``md5:...``.
        unpacked: Path, relative to the data set's folder, that exists once the archive is unpacked.
    """

    url: str
    size: int
    checksum: str
    unpacked: str


# Checksums as published in other tools (COCO: torchvision-like scripts; ADE20K: GluonCV and PyTorch-Encoding).
COCO = 'http://images.cocodataset.org'
DATASETS: dict[str, tuple[Archive, ...]] = {
    'coco2017': (
        Archive(
            f'{COCO}/annotations/annotations_trainval2017.zip',
            252907541,
            'md5:f4bbac642086de4f52a3fdda2de5fa2c',
            'annotations/instances_train2017.json',
        ),
        Archive(f'{COCO}/zips/val2017.zip', 815585330, 'md5:442b8da7639aecaf257c1dceb8ba8c80', 'val2017'),
        Archive(f'{COCO}/zips/train2017.zip', 19336861798, 'md5:cced6f7f71b7629ddf16f17bbcfab6b2', 'train2017'),
    ),
    'ade20k': (
        Archive(
            'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
            967_000_000,
            'sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7',
            'ADEChallengeData2016/annotations/validation',
        ),
    ),
}
ROOTS = {'coco2017': 'data/coco', 'ade20k': 'data/ade'}


def download_dataset(name: str, root: str | Path | None = None) -> Path:
    """Download, check and unpack a data set. Parts that exist already are skipped.

    An interrupted download is resumed. An archive is deleted once it is unpacked.

    Args:
        name: A key of ``DATASETS``.
        root: Target folder. None uses the folder in ``ROOTS``, which the configs read. It is relative to the current
            folder.

    Returns:
        The target folder.

    Raises:
        UserError: The arguments are invalid, the server cannot be reached, the connection was interrupted, disk space
            is missing, a checksum is wrong, or an archive cannot be unpacked.
    """
    if name not in DATASETS:
        raise UserError(f'no data set {name!r}; available: {", ".join(DATASETS)}')
    root = Path(root or ROOTS[name])
    if root.exists() and not root.is_dir():
        raise UserError(f'{root} is not a folder')
    missing = [archive for archive in DATASETS[name] if not (root / archive.unpacked).exists()]
    make_output_folder('--root', root)
    # An archive and its unpacked content exist at the same time. Downloaded parts occupy their space already.
    required = sum(2 * archive.size - _downloaded_bytes(archive, root) for archive in missing)
    if shutil.disk_usage(root).free < required:
        raise UserError(f'{required / 1e9:.0f} GB are needed at {root.absolute()} for download and unpacking')
    for archive in missing:
        unpack(fetch(archive, root), root, archive)
    return root


def _downloaded_bytes(archive: Archive, folder: Path) -> int:
    target = folder / Path(archive.url).name
    return max([0, *(path.stat().st_size for path in (target, target.with_suffix('.zip.part')) if path.exists())])


def fetch(archive: Archive, folder: Path) -> Path:
    """Download an archive and verify its checksum. An interrupted download is resumed.

    An archive that is already in the folder is neither downloaded nor verified again.

    Args:
        archive: Archive to download.
        folder: Existing folder to download into.

    Returns:
        Path of the downloaded file.

    Raises:
        UserError: The server cannot be reached, the connection was interrupted, or the checksum is wrong.
    """
    target = folder / Path(archive.url).name
    part = target.with_suffix('.zip.part')
    if not target.exists():
        if not _download(archive, part):
            raise UserError(f'{archive.url}: the connection was interrupted; run the same command again to resume')
        algorithm, _, digest = archive.checksum.partition(':')
        if file_digest(part, algorithm).hexdigest() != digest:
            part.unlink()
            raise UserError(
                f'the file from {archive.url} has a wrong checksum and was deleted: run the same command again'
            )
        part.rename(target)
    return target


def _download(archive: Archive, part: Path) -> bool:
    """Download the missing part of a file; return True if it is complete."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(archive.url, headers={'Range': f'bytes={done}-'} if done else {})  # noqa: S310
    columns = ('{task.description}', BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        with (
            urllib.request.urlopen(request, timeout=TIMEOUT) as response,  # noqa: S310 (addresses come from DATASETS)
            part.open('ab' if response.status == 206 else 'wb') as out,  # a server may ignore Range and start over
            Progress(*columns) as progress,
        ):
            total = out.tell() + int(response.headers.get('Content-Length') or archive.size - out.tell())
            task = progress.add_task(Path(archive.url).name, total=total, completed=out.tell())
            while block := response.read(BLOCK):
                out.write(block)
                progress.advance(task, len(block))
            return out.tell() >= total
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # the file is complete or too long; the checksum decides
        raise UserError(f'{archive.url}: {error}') from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, 'reason', None) or error
        raise UserError(
            f'{archive.url}: {reason}; the downloaded part is kept: run the same command again to resume'
        ) from error


def unpack(path: Path, folder: Path, archive: Archive) -> None:
    """Unpack a zip file into a folder, and delete the zip file.

    The content is moved to its place only when all of it is unpacked.

    Args:
        path: The zip file.
        folder: Folder to unpack into.
        archive: Archive whose ``unpacked`` path must exist afterwards.

    Raises:
        UserError: The file is not a zip file or lacks the expected path, or the folder cannot be written.
    """
    staging = folder / f'.{path.stem}.unpacking'
    shutil.rmtree(staging, ignore_errors=True)  # left by an earlier run that was interrupted
    print(f'unpacking {path.name}')
    try:
        with zipfile.ZipFile(path) as file:
            file.extractall(staging)
        for entry in staging.iterdir():
            if (folder / entry.name).is_dir():
                for inner in entry.iterdir():
                    inner.replace(folder / entry.name / inner.name)
            else:
                entry.replace(folder / entry.name)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f'{path} cannot be unpacked: {error}') from error
    shutil.rmtree(staging)
    if not (folder / archive.unpacked).exists():
        raise UserError(f'{path} did not contain {archive.unpacked}')
    path.unlink()
