"""Run a trained model on images, folders and videos, from a checkpoint or an exported file."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from mnv4_mm.apis.load import load
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, check_image_file, read_image, write_image
from mnv4_mm.paths import check_not_empty, check_output_folder
from mnv4_mm.runtime.results import ClassMap, Detections
from mnv4_mm.runtime.writer import WRITERS, PredictionWriter

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')
T = TypeVar('T')
Predict = Callable[[np.ndarray], Detections | ClassMap]


def infer(
    source: str,
    checkpoint: str,
    *,
    config: str | None = None,
    out_dir: str = 'outputs',
    score_thr: float = 0.3,
    device: str | None = None,
    inference: str | None = None,
) -> Path:
    """Detect or segment in an image, all images of a folder, or all frames of a video.

    Write the images with the predictions drawn (a video for a video), and ``predictions.json``, whose content
    ``runtime.writer`` describes; for segmentation also class maps.

    Args:
        source: Image, folder or video file.
        checkpoint: Checkpoint written by ``mnv4 train``, or file written by ``mnv4 export``, which needs no
            PyTorch.
        config: Checkpoint: config to use instead of the one inside.
        out_dir: Folder to write to.
        score_thr: Detection: boxes with lower scores are not drawn.
        device: Checkpoint: torch device; a GPU if there is one by default.
        inference: Checkpoint of a segmenter: ``whole`` images or ``slide`` for windows; as in the config by default.

    Returns:
        The path of ``predictions.json``.

    Raises:
        UserError: A bad argument or file. A file of a folder that is not an image is an error before the first image.
    """
    check_not_empty(
        source=source, checkpoint=checkpoint, config=config, out_dir=out_dir, device=device, inference=inference
    )
    if not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr must be in [0, 1], got {score_thr}')
    path = Path(source)
    is_video = path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()
    files = [] if is_video else _image_files(path)
    if is_video and not path.is_file():
        raise UserError(f'no video {path}')
    out = Path(out_dir)
    if out.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise UserError(f'--out-dir {out} is the folder of the images, which would be overwritten')
    check_output_folder('--out-dir', out)  # made with the first result
    predictor = load(checkpoint, config=config, device=device, inference=inference)
    writer = WRITERS[predictor.task](out, score_thr)
    if is_video:
        _infer_video(path, predictor, writer, out / f'{path.stem}.mp4')
        return writer.save()
    for file in _track(files, len(files) if len(files) > 1 else None):
        try:
            image = read_image(file)
        except UserError as error:
            if writer.images:
                raise UserError(f'{error}; the results of the images before it are in {writer.save()}') from error
            raise
        write_image(out / file.name, writer.add(file.name, predictor(image)))
    return writer.save()


def _image_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f'no images ({", ".join(IMAGE_SUFFIXES)}) in {path}')
        for file in files:
            check_image_file(file)
        return files
    if not path.is_file():
        raise UserError(f'no image, folder or video {path}')
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f'{path}: images end in {", ".join(IMAGE_SUFFIXES)}, videos in {", ".join(VIDEO_SUFFIXES)}')
    check_image_file(path)
    return [path]


def _infer_video(path: Path, predict: Predict, writer: PredictionWriter, target: Path) -> None:
    video = cv2.VideoCapture(str(path))
    video_writer = None
    try:
        count, fps = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
        for number, pixels in enumerate(_track(_frames(video), max(int(count), 0))):
            drawn = writer.add(f'{path.name}#{number}', predict(pixels))
            if video_writer is None:  # the size of the first drawn frame is that of the video
                size = drawn.shape[1::-1]
                target.parent.mkdir(parents=True, exist_ok=True)
                video_writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*'mp4v'), fps or 25, size)
            video_writer.write(_pad_or_crop(drawn, size))
    finally:
        video.release()
        if video_writer is not None:
            video_writer.release()
    if video_writer is None:
        raise UserError(f'{path} is not a readable video')


def _frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while (frame := video.read()[1]) is not None:
        yield frame


def _pad_or_crop(drawn: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bring a drawn frame to the width and height of the video: the size of a legend depends on the frame."""
    height, width = min(len(drawn), size[1]), min(drawn.shape[1], size[0])
    out = np.full((size[1], size[0], 3), 255, np.uint8)
    out[:height, :width] = drawn[:height, :width]
    return out


def _track(items: Iterable[T], total: int | None) -> Iterable[T]:
    """Show a progress bar if ``total`` is given and rich is installed, which a base installation does not need."""
    try:
        from rich.progress import track
    except ImportError:
        return items
    return track(items, 'running', total=total or None, disable=total is None)
