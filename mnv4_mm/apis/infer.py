"""Run a trained model on images, folders and videos, from a checkpoint or an exported file."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import cv2
import numpy as np

from mnv4_mm.apis.load import load
from mnv4_mm.errors import UserError
from mnv4_mm.images import (
    DARK,
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    VIDEO_SUFFIXES,
    check_image_file,
    read_image,
    unread_format,
    write_image,
)
from mnv4_mm.paths import check_not_empty, check_output_folder
from mnv4_mm.runtime.labels import check_names
from mnv4_mm.runtime.results import ClassMap, Detections
from mnv4_mm.runtime.writer import CLASS_MAPS, WRITERS, PredictionWriter

if TYPE_CHECKING:
    from mnv4_mm.apis.data_ids import DataIds

T = TypeVar('T')
Predict = Callable[[np.ndarray], Detections | ClassMap]
MAX_FPS = 65535  # of MPEG-4


class Inferred(NamedTuple):
    """Outcome of a run over images.

    Attributes:
        path: Path of ``predictions.json``.
        unreadable: Names of the images that could not be read and have no predictions.
        are_numbered: True if the ids of the images are 1, 2, ..., because no annotation file was given.
    """

    path: Path
    unreadable: list[str]
    are_numbered: bool


def infer(
    source: str,
    checkpoint: str,
    *,
    config: str | None = None,
    out_dir: str = 'outputs',
    score_thr: float = 0.3,
    device: str | None = None,
    inference: str | None = None,
    annotations: str | None = None,
    coco: bool = False,
) -> Path:
    """Detect or segment in an image, all images of a folder and its subfolders, or all frames of a video.

    The outputs are the images with the predictions drawn (a video for a video), ``predictions.json``, whose content
    ``runtime.writer`` describes, and, for segmentation, class maps. Hidden files and folders, whose names begin with a
    dot, are skipped. Files in a format that is not read, e.g. raw photos, are skipped too if a readable image of the
    same name is next to them. If another image of a folder cannot be read, or has such a format, the run goes on with
    the others; the image is named on stderr and under ``unreadable`` in ``predictions.json``.

    Args:
        source: Image, folder or video file.
        checkpoint: Checkpoint written by ``mnv4 train``, or file written by ``mnv4 export``, which needs no
            PyTorch.
        config: For a checkpoint: config to use instead of the one inside.
        out_dir: Folder to write to.
        score_thr: Detection: boxes with lower scores are not drawn.
        device: For a checkpoint: torch device; by default the GPU if there is one.
        inference: For a checkpoint of a segmenter: ``whole`` images or ``slide`` for windows; the config's if None.
        annotations: COCO annotation file of the images. Predictions get its image ids, matched by file name, and
            its category ids, matched by class name. Without it, images are numbered from 1.
        coco: Also write ``coco_results.json``, the list that ``loadRes`` of pycocotools takes.

    Returns:
        The path of ``predictions.json``.

    Raises:
        UserError: An argument or a file is invalid, none of the images can be read, or an image has another size in
            ``annotations``. An error in the middle of a run keeps the predictions made before it.
    """
    return infer_files(
        source,
        checkpoint,
        config=config,
        out_dir=out_dir,
        score_thr=score_thr,
        device=device,
        inference=inference,
        annotations=annotations,
        coco=coco,
    ).path


def infer_files(
    source: str,
    checkpoint: str,
    *,
    config: str | None,
    out_dir: str,
    score_thr: float,
    device: str | None,
    inference: str | None,
    annotations: str | None,
    coco: bool,
    labels: str | None = None,
) -> Inferred:
    """Do the work of ``infer``, and also return the names of the images that could not be read.

    The arguments and errors are those of ``infer``. ``labels`` is the form in which labels are to be written
    afterwards, a key of ``runtime.labels.FORMS``, or None. A UserError is raised if the names of the images do not
    allow this form.
    """
    check_not_empty(
        source=source,
        checkpoint=checkpoint,
        config=config,
        out_dir=out_dir,
        device=device,
        inference=inference,
        annotations=annotations,
    )
    if not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr must be in [0, 1], got {score_thr}')
    path, out = Path(source), Path(out_dir)
    is_video = path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()
    if is_video and not path.is_file():
        raise UserError(f'no video {path}')
    if is_video and annotations:
        raise UserError(f'--annotations {annotations} is for images; {path} is a video')
    files = {} if is_video else _image_files(path, out)
    if out.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise UserError(f'--out-dir {out} is the folder of the images, which would be overwritten')
    check_output_folder('--out-dir', out)  # made with the first result
    sources = {file.resolve() for file in files.values()}
    for name in files:
        if (out / name).resolve() in sources:
            raise UserError(f'--out-dir {out}: {out / name} is one of the images, which would be overwritten')
    ids = _data_ids(annotations)
    readable, unread, passed = _by_format(files)
    if labels:
        check_names(readable, labels)
    indices = ids.indices(list(readable.values())) if ids else [0] * len(readable)
    predictor = load(checkpoint, config=config, device=device, inference=inference)
    if predictor.task == 'segmentation' and any(Path(name).parts[0] == CLASS_MAPS.name for name in files):
        raise UserError(f'{path} has a folder {CLASS_MAPS.name}, the name of a folder of the results: name another')
    if predictor.task == 'segmentation' and coco and importlib.util.find_spec('pycocotools') is None:
        raise UserError('--coco of a segmenter needs pycocotools: pip install pycocotools')
    changes: dict[str, Any] = (
        dict(category_ids=ids.categories(predictor.classes)) if ids and predictor.task == 'detection' else {}
    )
    writer = WRITERS[predictor.task](out, score_thr, coco)
    for name in unread:
        writer.add_unreadable(name, str(unread_format(files[name])))
    items = list(zip(readable.items(), indices, strict=True))
    dark: list[str] = []
    try:
        if is_video:
            _infer_video(path, predictor, writer, out / f'{path.stem}.mp4')
        for (name, file), index in _track(items, len(items) if len(items) > 1 else None):
            try:
                image = read_image(file)
            except UserError as error:
                writer.add_unreadable(name, str(error))
                continue
            if (brightest := int(image.max())) <= DARK:
                dark.append(f'{name} is almost black: its brightest value is {brightest} of 255')
            height, width = image.shape[:2]
            image_id = ids.image_id(index, width, height) if ids else None
            result: Any = replace(predictor(image), **changes)
            write_image(out / name, writer.add(name, result, image_id))
    except BaseException:  # also Ctrl-C: the predictions so far are kept
        if writer.images:
            print(f'the predictions before the error are in {writer.save()}', file=sys.stderr)
        raise
    reasons = [entry['reason'] for entry in writer.unreadable]
    if not writer.images:
        rest = f'; none of the other {len(reasons) - 1} images can be read either' if len(reasons) > 1 else ''
        raise UserError(reasons[0] + rest)
    saved = writer.save()
    for reason in reasons:
        print(f'left out: {reason}', file=sys.stderr)
    if reasons:
        print(
            f'{len(reasons)} of {len(items) + len(unread)} images could not be read and have no predictions',
            file=sys.stderr,
        )
    if passed:
        print(f'skipped, because an image of the same name is next to it: {passed[0]}{_more(passed)}', file=sys.stderr)
    if dark:
        print(
            f'warning: {dark[0]}{_more(dark)}; scale the values of 16-bit images to their full range', file=sys.stderr
        )
    return Inferred(saved, [entry['file_name'] for entry in writer.unreadable], ids is None and not is_video)


def _by_format(files: Mapping[str, Path]) -> tuple[dict[str, Path], list[str], list[str]]:
    """Return the files whose format is read, the names of other files, and the names of other files that are skipped.

    The skipped files have a readable image of the same name next to them: cameras write a raw file and a JPEG of each
    photo.
    """
    readable = {name: file for name, file in files.items() if not name.lower().endswith(UNREAD_SUFFIXES)}
    stems = {os.path.splitext(name)[0] for name in readable}
    others = [name for name in files if name not in readable]
    passed = [name for name in others if os.path.splitext(name)[0] in stems]
    unread = [name for name in others if os.path.splitext(name)[0] not in stems]
    return readable, unread, passed


def _more(names: Sequence[str]) -> str:
    return f' (and {len(names) - 1} more)' if len(names) > 1 else ''


def _data_ids(annotations: str | None) -> 'DataIds | None':
    if annotations is None:
        return None
    from mnv4_mm.apis.data_ids import DataIds

    return DataIds(annotations)


def _image_files(path: Path, out: Path) -> dict[str, Path]:
    """Return the image files of a folder and its subfolders, or the one image, by name relative to the folder.

    Files with ``UNREAD_SUFFIXES`` are included if they are in a folder.

    Args:
        path: Folder or image.
        out: Folder of the results, which is skipped.
    """
    if path.is_dir():
        suffixes = (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)
        names = [file.relative_to(path) for file in path.rglob('*') if file.suffix.lower() in suffixes]
        inside = out.resolve().relative_to(path.resolve()).parts if out.resolve().is_relative_to(path.resolve()) else ()
        files = {
            name.as_posix(): path / name
            for name in sorted(names)
            if not any(part.startswith('.') for part in name.parts)
            and not (inside and name.parts[: len(inside)] == inside)
            and not (path / name).is_dir()
        }
        if not files:
            raise UserError(f'no images ({", ".join(IMAGE_SUFFIXES)}) in {path}')
        return files
    if not path.is_file():
        raise UserError(f'no image, folder or video {path}')
    if path.suffix.lower() in UNREAD_SUFFIXES:
        raise unread_format(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f'{path}: images end in {", ".join(IMAGE_SUFFIXES)}, videos in {", ".join(VIDEO_SUFFIXES)}')
    check_image_file(path)
    return {path.name: path}


def _infer_video(path: Path, predict: Predict, writer: PredictionWriter, target: Path) -> None:
    video = cv2.VideoCapture(str(path))
    video_writer = None
    number = -1
    try:
        count, fps = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
        for number, pixels in enumerate(_track(_frames(video), max(int(count), 0))):
            drawn = writer.add(f'{path.name}#{number}', predict(pixels))
            if video_writer is None:  # the video has the size of its first drawn frame
                size = drawn.shape[1::-1]
                target.parent.mkdir(parents=True, exist_ok=True)
                video_writer = cv2.VideoWriter(
                    str(target), cv2.VideoWriter.fourcc(*'mp4v'), fps if 0 < fps <= MAX_FPS else 25, size
                )
                if not video_writer.isOpened():
                    raise UserError(f'{target} cannot be written by this OpenCV')
            video_writer.write(_pad_or_crop(drawn, size))
    finally:
        video.release()
        if video_writer is not None:
            video_writer.release()
    if video_writer is None:
        raise UserError(f'{path} is not a readable video')
    # Some containers count a frame too many; a video that was cut off lacks more.
    if number + 1 < int(count) - 1:
        print(f'warning: {path} ends after {number + 1} of {int(count)} frames', file=sys.stderr)


def _frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while (frame := video.read()[1]) is not None:
        yield frame


def _pad_or_crop(drawn: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Pad or crop a drawn frame, whose legend varies in size, to the width and height of the video."""
    height, width = min(len(drawn), size[1]), min(drawn.shape[1], size[0])
    out = np.full((size[1], size[0], 3), 255, np.uint8)
    out[:height, :width] = drawn[:height, :width]
    return out


def _track(items: Iterable[T], total: int | None) -> Iterable[T]:
    """Return the items, with a progress bar if ``total`` is not None and rich is installed; 0 is an unknown total."""
    if total is None:
        return items
    try:
        from rich.progress import track
    except ImportError:
        return items
    return track(items, 'running', total=total or None)
