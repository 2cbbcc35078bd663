"""Images, folders and videos to run a model on. Imports nothing heavy, so that they are checked before torch is."""

from pathlib import Path

import cv2

from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES
from mnv4_mm.paths import check_output_folder

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


def check_infer(source: Path, out: Path, score_thr: float) -> list[Path]:
    """Check the arguments of ``infer``.

    Args:
        source: Image, folder of images, or video.
        out: Folder to write to.
        score_thr: Score from which boxes are drawn.

    Returns:
        The image files, sorted; none for a video.

    Raises:
        UserError: A number is out of range, or a file is missing, unreadable or would be overwritten.
    """
    if not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr must be in [0, 1], got {score_thr}')
    files = [] if is_video(source) else image_files(source)
    if is_video(source) and not source.is_file():
        raise UserError(f'no video {source}')
    if out.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise UserError(f'--out-dir {out} is where the images are: they would be written over')
    check_output_folder('--out-dir', out)
    return files


def is_video(source: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return source.suffix.lower() in VIDEO_SUFFIXES


def image_files(path: Path) -> list[Path]:
    """Return a file, or the image files of a folder, sorted.

    Raises:
        UserError: There are none, or one is not an image.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f'no images ({", ".join(IMAGE_SUFFIXES)}) in {path}')
        for file in files:
            if not cv2.haveImageReader(str(file)):
                raise UserError(f'{file} is not a readable image')
        return files
    if not path.is_file():
        raise UserError(f'no image, folder or video {path}')
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f'{path}: images end in {", ".join(IMAGE_SUFFIXES)}, videos in {", ".join(VIDEO_SUFFIXES)}')
    return [path]
