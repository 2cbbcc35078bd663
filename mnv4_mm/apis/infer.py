"""Run a trained detector on pictures, folders and videos: what ``tools/infer.py`` calls."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmdet.apis import inference_detector
from mmdet.utils import register_all_modules
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import MODELS
from rich.progress import track
from torch import nn

from mnv4_mm import weights
from mnv4_mm.apis import config as configs
from mnv4_mm.apis.evaluate import quiet_painter
from mnv4_mm.errors import UserError
from mnv4_mm.models.pretrained import tensors_only

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


class Frame(NamedTuple):
    """A picture to look at: its file name in the results, and (H, W, 3) uint8 BGR pixels."""

    name: str
    pixels: np.ndarray


def load_detector(checkpoint: str, config: str | None = None, device: str | None = None) -> nn.Module:
    """Builds a detector from a checkpoint written by ``tools/train.py``, which carries its config and class names.

    Args:
        checkpoint: Checkpoint file.
        config: Config to use instead of the one inside.
        device: torch device; a GPU where there is one if left out.

    Returns:
        The detector in evaluation mode, with ``cfg`` and ``dataset_meta`` as mmdet's APIs expect.

    Raises:
        UserError: the checkpoint cannot be read, carries no config, or does not fit.
    """
    content = weights.load_checkpoint(checkpoint)
    cfg = configs.load_config(config) if config else weights.checkpoint_config(content, checkpoint)
    register_all_modules(init_default_scope=True)
    with tensors_only():
        model = MODELS.build(cfg.model)
    weights.load_into(model, content, checkpoint)
    meta = content.get('meta', {}).get('dataset_meta')
    if not meta or 'classes' not in meta:
        raise UserError(f'{checkpoint} does not name its classes: it was not written by tools/train.py')
    model.cfg = cfg
    model.dataset_meta = meta
    # In the order of labels; the data's own where train.py noted them.
    model.category_ids = content['meta'].get('category_ids') or list(range(1, len(meta['classes']) + 1))
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
) -> Path:
    """Detects on a picture, all pictures of a folder, or all frames of a video.

    Writes pictures with boxes (a video for a video) and ``predictions.json``: a COCO data set whose annotations have a
    ``score`` (boxes [x, y, width, height] in pixels of the original picture, all detections, not only those drawn).

    Args:
        source: Picture, folder or video file.
        checkpoint: Checkpoint file written by ``tools/train.py``.
        config: Config to use instead of the one inside the checkpoint.
        out_dir: Where to write.
        score_thr: Boxes below this score are not drawn.
        device: torch device.

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
    model = load_detector(checkpoint, config, device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out-dir {out} cannot be made: {error.strerror}') from error
    painter = DetLocalVisualizer()
    painter.dataset_meta = model.dataset_meta

    if is_video:
        content = _infer_video(path, model, painter, out / f'{path.stem}.mp4', score_thr)
    else:
        frames = ((Frame(file.name, read_picture(file))) for file in files)
        content = _empty_coco(model)
        for frame in track(frames, 'detecting', total=len(files), disable=len(files) == 1):
            _write_picture(out / frame.name, _detect(frame, model, painter, content, score_thr))
    result = out / 'predictions.json'
    result.write_text(json.dumps(content))
    return result


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 BGR, turned as its EXIF data says.

    Raises:
        UserError: it is not a readable picture.
    """
    data = np.fromfile(path, np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if pixels is None:
        raise UserError(f'{path} is not a readable picture')
    return pixels


def _picture_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise UserError(f'no pictures ({", ".join(PICTURES)}) in {path}')
        for file in files:
            if not cv2.haveImageReader(str(file)):
                raise UserError(f'{file} is not a readable picture')
        return files
    if not path.is_file():
        raise UserError(f'no picture, folder or video {path}')
    if path.suffix.lower() not in PICTURES:
        raise UserError(f'{path}: pictures end in {", ".join(PICTURES)}, videos in {", ".join(VIDEOS)}')
    return [path]


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    if not cv2.imwrite(str(path), pixels):
        raise UserError(f'{path} cannot be written')


def _infer_video(path: Path, model: nn.Module, painter: DetLocalVisualizer, target: Path, score_thr: float) -> dict:
    video = mmcv.VideoReader(str(path))
    if not video.opened or video.width <= 0:
        raise UserError(f'{path} is not a readable video')
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*'mp4v'), video.fps or 25, video.resolution)
    content = _empty_coco(model)
    try:
        for number, pixels in enumerate(track(_frames(video), 'detecting', total=max(video.frame_cnt, 0) or None)):
            frame = Frame(f'{path.name}#{number}', pixels)
            writer.write(_detect(frame, model, painter, content, score_thr))
    finally:
        writer.release()
    if not content['images']:
        raise UserError(f'{path} is not a readable video')
    return content


def _frames(video: mmcv.VideoReader) -> Iterator[np.ndarray]:
    while (pixels := video.read()) is not None:
        yield pixels


def _empty_coco(model: Any) -> dict[str, list]:
    names = model.dataset_meta['classes']
    categories = [dict(id=i, name=name) for i, name in zip(model.category_ids, names, strict=True)]
    return dict(images=[], annotations=[], categories=categories)


def _detect(
    frame: Frame, model: Any, painter: DetLocalVisualizer, content: dict[str, list], score_thr: float
) -> np.ndarray:
    """Detects on one frame, appends to ``content`` and returns the (H, W, 3) BGR picture with boxes."""
    sample = inference_detector(model, frame.pixels)
    height, width = frame.pixels.shape[:2]
    image_id = len(content['images']) + 1
    content['images'].append(dict(id=image_id, file_name=frame.name, width=width, height=height))
    found = sample.pred_instances.cpu().numpy()
    for (x1, y1, x2, y2), score, label in zip(
        found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    ):
        content['annotations'].append(
            dict(
                id=len(content['annotations']) + 1,
                image_id=image_id,
                category_id=model.category_ids[label],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                iscrowd=0,
                score=score,
            )
        )
    with quiet_painter():
        painter.add_datasample(frame.name, mmcv.bgr2rgb(frame.pixels), sample, draw_gt=False, pred_score_thr=score_thr)
    return mmcv.rgb2bgr(painter.get_image())
