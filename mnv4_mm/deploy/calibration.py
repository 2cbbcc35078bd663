"""Images for calibration: which images of a folder or of a data set are used."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mnv4_mm.data.formats.files import first
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, read_image

MAX_CALIBRATION_IMAGES = 64
FEW = 16  # with fewer images, ranges are likely to be too small for other images

T = TypeVar('T')


class CalibrationImages(NamedTuple):
    """Images for calibration.

    Attributes:
        place: Where they come from, for messages.
        folder: Folder that holds them, possibly in subfolders.
        files: Image files.
    """

    place: str
    folder: Path
    files: list[Path]

    @property
    def names(self) -> tuple[str, ...]:
        """Paths relative to the folder; of files elsewhere, the whole paths."""
        return tuple(
            (file.relative_to(self.folder) if file.is_relative_to(self.folder) else file).as_posix()
            for file in self.files
        )

    def __str__(self) -> str:
        names = self.names
        folders = Counter(name.rpartition('/')[0] or '.' for name in names)
        counts = first(f'{count} in {folder}' for folder, count in folders.items())
        parts = f' ({len(folders)} folders: {counts})' if len(folders) > 1 else ''
        plural = 's' if len(names) > 1 else ''
        few = f'; few: up to {MAX_CALIBRATION_IMAGES} are used' if len(names) < FEW else ''
        return f'{len(names)} image{plural} of {self.place}{parts}, {names[0]} to {names[-1]}{few}'

    def check(self) -> None:
        """Decode every image, so that those that are not readable are reported together before the conversion starts.

        Raises:
            UserError: Images are not readable.
        """
        mistakes = []
        for file in self.files:
            try:
                read_image(file)
            except UserError as error:
                mistakes.append(str(error))
        if mistakes:
            raise UserError(f'{len(mistakes)} of {len(self.files)} images for calibration: {first(mistakes, 8)}')


def calibration_files(folder: Path) -> list[Path]:
    """Return all image files in a folder and its subfolders, sorted by path.

    Hidden files and folders are left out. Their names start with a dot, like those of the ``._a.jpg`` that macOS
    writes beside ``a.jpg``, and of folders of thumbnails.

    Raises:
        UserError: There are no images, or no such folder.
    """
    files = sorted(
        file
        for file in folder.rglob('*')
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith('.') for part in file.relative_to(folder).parts)
    )
    if not files:
        raise UserError(f'no images for calibration in {folder}: name a folder of images by --calibration')
    return files


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return at most ``count`` items, spread evenly over a list.

    Args:
        items: The list.
        count: Largest number of items to return.

    Returns:
        Items in the order of the list, among them the first and, if ``count`` is above 1, the last. All items if there
        are not more than ``count``.
    """
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
