"""Run a trained model on pictures, folders and videos: what ``tools/infer.py`` calls."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from rich.progress import track
from torch import nn

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.data import fit_inference
from mnv4_mm.config.load import load_config
from mnv4_mm.engine.runner import quiet_losses
from mnv4_mm.engine.step import use_channels_last
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, read_image, write_image
from mnv4_mm.tasks import build_model, task_of
from mnv4_mm.tasks.task import Frame, Results
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint, tensors_only
from mnv4_mm.weights.strict import load_into

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


def load_model(
    checkpoint: str | Path | Checkpoint,
    config: str | None = None,
    device: str | None = None,
    inference: str | None = None,
) -> nn.Module:
    """Builds a model from a checkpoint written by ``tools/train.py``, which carries its config and class names.

    Args:
        checkpoint: Checkpoint file, or the checkpoint that was read from it.
        config: Config to use instead of the one inside.
        device: torch device; a GPU where there is one if left out.
        inference: Segmentation: whole pictures or windows, see ``config.fit_inference``; the config's own if left out.

    Returns:
        The model in evaluation mode, with ``cfg`` and ``dataset_meta`` as mmdet's and mmseg's APIs expect, and the
        checkpoint's ``meta`` as ``checkpoint_meta``.

    Raises:
        UserError: the checkpoint cannot be read, carries no config, or does not fit.
    """
    content = read_checkpoint(checkpoint)
    cfg = load_config(config) if config else checkpoint_config(content)
    if inference:
        cfg = fit_inference(cfg, inference)
    with tensors_only(), quiet_losses():
        model = build_model(cfg)
    load_into(model, content)
    if cfg.get('channels_last'):
        use_channels_last(model)
    meta: Any = content.meta
    if 'classes' not in (meta.get('dataset_meta') or {}):
        raise UserError(f'{content.path} does not name its classes: it was not written by tools/train.py')
    model.cfg, model.dataset_meta, model.checkpoint_meta = cfg, meta['dataset_meta'], meta
    try:
        model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {device} cannot be used: {str(error).splitlines()[0]}') from error
    return model.eval()


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
    """Detects or segments in a picture, all pictures of a folder, or all frames of a video.

    Writes the pictures with what was found (a video for a video) and ``predictions.json``; what that holds, and what
    else is written, ``detection.Detections`` and ``segmentation.ClassMaps`` say.

    Args:
        source: Picture, folder or video file.
        checkpoint: Checkpoint file written by ``tools/train.py``.
        config: Config to use instead of the one inside the checkpoint.
        out_dir: Where to write.
        score_thr: Detection: boxes below this score are not drawn.
        device: torch device.
        inference: See ``load_model``.

    Returns:
        The path of ``predictions.json``.

    Raises:
        UserError: a bad argument or file. A picture of a folder that cannot be read is an error before any is run.
    """
    if not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr must be in [0, 1], got {score_thr}')
    path = Path(source)
    is_video = path.suffix.lower() in VIDEOS
    files = [] if is_video else _picture_files(path)
    if is_video and not path.is_file():
        raise UserError(f'no video {path}')
    out = Path(out_dir)
    if out.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise UserError(f'--out-dir {out} is where the pictures are: they would be written over')
    model = load_model(checkpoint, config, device, inference)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out-dir {out} cannot be made: {error.strerror}') from error
    results = task_of(model.cfg).results(model, out, score_thr)
    if is_video:
        _infer_video(path, results, out / f'{path.stem}.mp4')
    else:
        frames = (Frame(file.name, read_image(file)) for file in files)
        for frame in track(frames, 'running', total=len(files), disable=len(files) == 1):
            write_image(out / frame.name, results.add(frame))
    return results.save()


def _picture_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f'no pictures ({", ".join(IMAGE_SUFFIXES)}) in {path}')
        for file in files:
            if not cv2.haveImageReader(str(file)):
                raise UserError(f'{file} is not a readable picture')
        return files
    if not path.is_file():
        raise UserError(f'no picture, folder or video {path}')
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f'{path}: pictures end in {", ".join(IMAGE_SUFFIXES)}, videos in {", ".join(VIDEOS)}')
    return [path]


def _infer_video(path: Path, results: Results, target: Path) -> None:
    video = mmcv.VideoReader(str(path))
    if not video.opened or video.width <= 0:
        raise UserError(f'{path} is not a readable video')
    writer = None
    try:
        for number, pixels in enumerate(track(_frames(video), 'running', total=max(video.frame_cnt, 0) or None)):
            drawn = results.add(Frame(f'{path.name}#{number}', pixels))
            if writer is None:  # the first picture says how large the drawn ones are
                size = drawn.shape[1::-1]
                writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*'mp4v'), video.fps or 25, size)
            writer.write(_fitted(drawn, size))
    finally:
        if writer is not None:
            writer.release()
    if writer is None:
        raise UserError(f'{path} is not a readable video')


def _fitted(drawn: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Cuts or fills up a drawn frame, whose legend changes with what is seen, to a video's width and height."""
    height, width = min(len(drawn), size[1]), min(drawn.shape[1], size[0])
    out = np.full((size[1], size[0], 3), 255, np.uint8)
    out[:height, :width] = drawn[:height, :width]
    return out


def _frames(video: mmcv.VideoReader) -> Iterator[np.ndarray]:
    while (pixels := video.read()) is not None:
        yield pixels
