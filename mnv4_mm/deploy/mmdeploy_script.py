"""What mmdeploy's script tools/deploy.py does, within this project's rules: what ``tools/deploy.py`` calls.

Checkpoints are read as tensors only, files are written whole or not at all, and nothing of mmdeploy's stays behind.
"""

import copy
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn

from mnv4_mm.apis.model import load_model
from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.config.index import CONFIGS
from mnv4_mm.config.load import load_config
from mnv4_mm.engine.runner import quiet_losses
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image, write_image
from mnv4_mm.tasks import task_of
from mnv4_mm.tasks.segmentation import Segmentation
from mnv4_mm.weights.strict import tensors_only

INSTALL = '`make mmdeploy`, or `pip install --no-deps -r requirements/mmdeploy.txt`'


def deploy(
    deploy_cfg: str,
    model_cfg: str,
    checkpoint: str,
    img: str,
    *,
    test_img: Sequence[str] | None = None,
    work_dir: str = '.',
    device: str = 'cpu',
    log_level: str = 'INFO',
    show: bool = False,
    dump_info: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
    **unsupported: Any,
) -> Path:
    """Exports a model by mmdeploy, and draws what the file and the model find in the same pictures.

    Writes the ONNX file that the deploy config names, ``output_onnxruntime.jpg`` and ``output_pytorch.jpg`` (numbered
    if there are several ``test_img``), and with ``dump_info`` the SDK's ``deploy.json``, ``pipeline.json`` and
    ``detail.json``.

    Args:
        deploy_cfg: Deploy config file, one of configs/deploy.
        model_cfg: Path or name of the config the checkpoint was trained with.
        checkpoint: Checkpoint file written by ``tools/train.py``.
        img: Picture with which the model is traced.
        test_img: Pictures to draw instead.
        work_dir: Where to write.
        device: torch device.
        log_level: Of mmdeploy's and mmengine's log.
        show: Also show the pictures in windows.
        dump_info: Also write what the SDK needs.
        cfg_options: Values that replace the deploy config's.
        **unsupported: Arguments of mmdeploy's script for backends other than ONNX Runtime; an error if one is set.

    Returns:
        The path of the ONNX file.

    Raises:
        UserError: a bad argument or file, or mmdeploy is not installed.
    """
    for name, value in unsupported.items():
        if value:
            raise UserError(
                f'--{name.replace("_", "-")} is for backends other than onnxruntime, the only one exported here '
                '(docs/mmdeploy.md)'
            )
    if importlib.util.find_spec('mmdeploy') is None:
        raise UserError(f'mmdeploy is not installed: {INSTALL}')
    if show and sys.platform == 'linux' and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise UserError(f'--show needs a display; without it the pictures are written to {work_dir}')
    deploying = load_deploy_config(deploy_cfg, cfg_options or {})
    deploying, cfg = fit_size(deploying, load_config(model_cfg))
    images = [read_image(path) for path in test_img or [img]]
    model = load_model(checkpoint, model_cfg, device)
    target = Path(work_dir)
    target.mkdir(parents=True, exist_ok=True)
    name = deploying.onnx_config.save_file
    with _logging(log_level), tempfile.TemporaryDirectory(dir=target) as folder:
        export(deploying, cfg, checkpoint, read_image(img), Path(folder), device)
        if dump_info:
            dump(deploying, cfg, checkpoint, Path(folder), device)
        for by, runs in (
            ('onnxruntime', load_exported(deploying, cfg, Path(folder) / name, device)),
            ('pytorch', model),
        ):
            # The same names, colours and preparation of pictures for both.
            runs.cfg, runs.dataset_meta, runs.checkpoint_meta = cfg, model.dataset_meta, model.checkpoint_meta
            _draw(runs, images, Path(folder), f'output_{by}', show)
        for path in sorted(Path(folder).iterdir()):
            path.replace(target / path.name)
    return target / name


def load_deploy_config(path: str, options: Mapping[str, Any]) -> Config:
    """Loads a deploy config.

    Args:
        path: Its file.
        options: Values that replace its own.

    Raises:
        UserError: there is no such file, it is none, or it asks for what is not done here.
    """
    if not Path(path).is_file():
        shipped = sorted((CONFIGS / 'deploy').glob('*.py'))
        raise UserError(f'no deploy config {path}; there are {", ".join(map(str, shipped))}')
    deploying = load_config(path)
    try:
        deploying.merge_from_dict(dict(options))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError) as error:
        raise UserError(f'--cfg-options: {" ".join(str(error).split())}') from error
    missing = {'backend_config', 'codebase_config', 'onnx_config'} - deploying.keys()
    if missing:
        raise UserError(f'{path} is no deploy config for ONNX: it has no {", ".join(sorted(missing))}')
    backend = deploying.backend_config.get('type')
    if backend != 'onnxruntime':
        raise UserError(
            f'{path} is for {backend}; only onnxruntime is exported here. Other runtimes take its ONNX file, or '
            '`python tools/export.py` makes their own (docs/mmdeploy.md)'
        )
    if 'partition_config' in deploying:
        raise UserError(f'{path}: parts of a model (partition_config) are not exported here')
    return deploying


def fit_size(deploying: Config, cfg: Config) -> tuple[Config, Config]:
    """Brings deploy and model config to one size of pictures where a static file needs it.

    A test pipeline that ends in one size for all pictures stays as it is. Where each picture keeps its shape, a static
    file stretches it to ``onnx_config.input_shape`` or, where that is None, to the config's ``input_size``.

    Args:
        deploying: The deploy config.
        cfg: The model's config.

    Returns:
        Both, changed copies.

    Raises:
        UserError: they do not fit each other, or no size is known.
    """
    deploying, cfg = copy.deepcopy(deploying), copy.deepcopy(cfg)
    task = task_of(cfg)
    if deploying.codebase_config.get('type') != cfg.default_scope:
        raise UserError(
            f'the deploy config is for {deploying.codebase_config.get("type")}, the model is of {cfg.default_scope}'
        )
    if isinstance(task, Segmentation):
        if cfg.model.test_cfg.get('mode') == 'slide':
            raise UserError(
                'mmdeploy exports whole pictures only; this config sees windows (model.test_cfg.mode=slide)'
            )
        cfg.data_preprocessor = cfg.model.data_preprocessor  # where mmdeploy looks for what the SDK normalises with
    pipeline = innermost_dataset(cfg.test_dataloader.dataset).pipeline
    size = deploying.onnx_config.get('input_shape')
    if size is None and not (deploying.onnx_config.get('dynamic_axes') or _makes_one_size(pipeline)):
        size = cfg.get('input_size')
        if size is None:
            raise UserError(
                'pictures of this config keep their shape, and a static file has one: give it by '
                '--cfg-options "onnx_config.input_shape=[512, 512]" (width, height)'
            )
    if size is not None:
        if not isinstance(size, list | tuple) or len(size) != 2 or any(type(a) is not int or a < 1 for a in size):
            raise UserError(f'onnx_config.input_shape must be width and height in pixels, got {size}')
        deploying.onnx_config.input_shape = list(size)
        for step in pipeline:  # as mmdeploy does by itself, here also for the pictures that are drawn
            if step['type'] == 'Resize':
                step.update(scale=tuple(size), keep_ratio=False)
            elif step['type'] == 'Pad' and 'size' in step:
                step.size = tuple(size)
    cfg.test_pipeline = copy.deepcopy(pipeline)
    return deploying, cfg


def _makes_one_size(pipeline: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        (step['type'] == 'Pad' and 'size' in step) or (step['type'] == 'Resize' and not step.get('keep_ratio'))
        for step in pipeline
    )


@contextmanager
def _mmdeploy_scope(cfg: Config) -> Iterator[None]:
    """Lets mmdeploy set the default scope, which it never takes back; and read tensors only."""
    with tensors_only(), quiet_losses(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield


def export(deploying: Config, cfg: Config, checkpoint: str, pixels: np.ndarray, folder: Path, device: str) -> None:
    """Writes the ONNX file into a folder.

    Args:
        deploying: The deploy config and
        cfg: the model's config, of ``fit_size``.
        checkpoint: Checkpoint file that fits the config.
        pixels: Picture with which the model is traced, (H, W, 3) uint8 BGR.
        folder: Where to write.
        device: torch device.
    """
    from mmdeploy.apis import torch2onnx

    with _mmdeploy_scope(cfg):
        # mmdeploy changes the configs it is given.
        torch2onnx(
            pixels,
            str(folder),
            deploying.onnx_config.save_file,
            copy.deepcopy(deploying),
            copy.deepcopy(cfg),
            f'tensors://{Path(checkpoint).absolute()}',
            device,
        )


def dump(deploying: Config, cfg: Config, checkpoint: str, folder: Path, device: str) -> None:
    """Writes the SDK's deploy.json, pipeline.json and detail.json into a folder. Arguments as of ``export``."""
    from mmdeploy.backend.sdk.export_info import export2SDK

    with _mmdeploy_scope(cfg):
        export2SDK(copy.deepcopy(deploying), copy.deepcopy(cfg), str(folder), pth=checkpoint, device=device)


def load_exported(deploying: Config, cfg: Config, file: Path, device: str) -> nn.Module:
    """Loads an exported file as a model of mmdeploy's, with ``test_step`` as mmdet's and mmseg's have it."""
    from mmdeploy.apis import build_task_processor

    with _mmdeploy_scope(cfg):
        processor = build_task_processor(copy.deepcopy(cfg), copy.deepcopy(deploying), device)
        return processor.build_backend_model([str(file)], data_preprocessor_updater=processor.update_data_preprocessor)


def _draw(model: nn.Module, images: Sequence[np.ndarray], folder: Path, stem: str, show: bool) -> None:
    predict = task_of(model.cfg).predictor(model)
    drawn = [predict(image).plot() for image in images]
    for number, picture in enumerate(drawn):
        write_image(folder / f'{stem}{f"_{number}" if len(drawn) > 1 else ""}.jpg', picture)
        if show:
            cv2.imshow(stem, picture)
            cv2.waitKey()


@contextmanager
def _logging(level: str) -> Iterator[None]:
    """Sets the level of mmdeploy's and mmengine's log for a time, and leaves out what mmdeploy says about itself."""
    loggers = [MMLogger.get_current_instance(), MMLogger.get_instance('mmdeploy')]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
        logger.addFilter(_concerns_users)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
            logger.removeFilter(_concerns_users)


def _concerns_users(record: logging.LogRecord) -> bool:
    """Whether a log line is none of those that mmdeploy's own code causes whatever the model."""
    text = record.getMessage()
    return not ('Failed to search registry' in text or text.startswith('DeprecationWarning: get_'))
