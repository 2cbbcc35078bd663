"""Export with mmdeploy, with the arguments of mmdeploy's ``tools/deploy.py``. Called by the ``tools/deploy.py`` here.

Unlike mmdeploy's script, this module reads checkpoints as tensors only, leaves no global state of mmdeploy behind, and
moves files to the output folder only when all are complete.
"""

import copy
import logging
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
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.arguments import check_mmdeploy
from mnv4_mm.engine.qat import NAME as QAT
from mnv4_mm.engine.runner import quiet_losses
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image, write_image
from mnv4_mm.paths import make_output_folder
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import tensors_only


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
    """Export a model with mmdeploy, and draw the predictions of the ONNX file and of PyTorch for the same images.

    Writes to ``work_dir`` the ONNX file that the deploy config names, ``output_onnxruntime.jpg`` and
    ``output_pytorch.jpg`` (numbered if there are several ``test_img``), and with ``dump_info`` the ``deploy.json``,
    ``pipeline.json`` and ``detail.json`` of the SDK.

    Args:
        deploy_cfg: Deploy config file, one of configs/deploy.
        model_cfg: Path or name of the config that the checkpoint was trained with.
        checkpoint: Checkpoint file written by ``mnv4 train``.
        img: Image file with which the model is traced.
        test_img: Image files to draw; ``img`` if left out.
        work_dir: Output folder.
        device: torch device.
        log_level: Level of the logs of mmdeploy and mmengine.
        show: Also show each image in a window, and wait for a key.
        dump_info: Also write the files that the SDK needs.
        cfg_options: Values that replace those of the deploy config, by dotted keys (``onnx_config.input_shape``).
        **unsupported: Arguments of mmdeploy's ``tools/deploy.py`` for backends other than ONNX Runtime. It is an error
            if one has a value other than None, False or an empty one.

    Returns:
        The path of the ONNX file.

    Raises:
        UserError: An argument or file is invalid, or mmdeploy is not installed.
    """
    images_to_draw = test_img or [img]
    check_mmdeploy(deploy_cfg, checkpoint, [img, *images_to_draw], work_dir, show, unsupported)
    deploy_config = load_deploy_config(deploy_cfg, cfg_options or {})
    deploy_config, cfg = fit_size(deploy_config, load_config(model_cfg))
    images = [read_image(path) for path in images_to_draw]
    model: Any = load_model(checkpoint, model_cfg, device)
    if model.cfg.get(QAT):
        raise UserError(
            f'{checkpoint} has been fine-tuned for int8, which mmdeploy does not export: mnv4 export {checkpoint} '
            '--precision int8'
        )
    out_dir = make_output_folder('--work-dir', work_dir)
    file_name = deploy_config.onnx_config.save_file
    with _logging(log_level), tempfile.TemporaryDirectory(dir=out_dir) as temporary:
        folder = Path(temporary)
        export(deploy_config, cfg, checkpoint, read_image(img), folder, device)
        if dump_info:
            dump(deploy_config, cfg, checkpoint, folder, device)
        exported: Any = load_exported(deploy_config, cfg, folder / file_name, device)
        for name, net in (('onnxruntime', exported), ('pytorch', model)):
            # The same class names, colours and preprocessing for both.
            net.cfg, net.dataset_meta, net.checkpoint_meta = cfg, model.dataset_meta, model.checkpoint_meta
            _draw(net, images, folder, f'output_{name}', show)
        for path in sorted(folder.iterdir()):
            path.replace(out_dir / path.name)
    return out_dir / file_name


def load_deploy_config(path: str, options: Mapping[str, Any]) -> Config:
    """Load a deploy config.

    Args:
        path: The deploy config file.
        options: Values that replace those of the file, by dotted keys.

    Returns:
        The config with the replaced values.

    Raises:
        UserError: The file is not a deploy config for ONNX, its backend is not ONNX Runtime, it has a
            ``partition_config``, or an option does not fit it.
    """
    config = load_config(path)
    try:
        config.merge_from_dict(dict(options))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError) as error:
        raise UserError(f'--cfg-options: {" ".join(str(error).split())}') from error
    missing = {'backend_config', 'codebase_config', 'onnx_config'} - config.keys()
    if missing:
        raise UserError(f'{path} is not a deploy config for ONNX: it has no {", ".join(sorted(missing))}')
    backend = config.backend_config.get('type')
    if backend != 'onnxruntime':
        raise UserError(
            f'{path} is for {backend}; only onnxruntime is exported here. Many runtimes read the ONNX file, and '
            '`mnv4 export` writes the formats of some others (docs/mmdeploy.md)'
        )
    if 'partition_config' in config:
        raise UserError(f'{path}: remove `partition_config`: only whole models are exported')
    return config


def fit_size(deploy_config: Config, cfg: Config) -> tuple[Config, Config]:
    """Make the deploy config and the model config agree on the size of images.

    - If ``onnx_config.input_shape`` (width, height) is set, the test pipeline is changed to stretch images to that
      size.
    - If ``input_shape`` is None and the file is static, the test pipeline is changed in the same way if images keep
      their aspect ratio and are not padded to one size. The size is then the ``input_size`` of the model config, and
      ``input_shape`` is set.
    - Otherwise the size is not changed.

    Args:
        deploy_config: The deploy config.
        cfg: The config of the model.

    Returns:
        Changed copies of ``deploy_config`` and ``cfg``.

    Raises:
        UserError: The configs do not fit each other, or the size is unknown or invalid.
    """
    deploy_config, cfg = copy.deepcopy(deploy_config), copy.deepcopy(cfg)
    codebase = deploy_config.codebase_config.get('type')
    if codebase != cfg.default_scope:
        raise UserError(f'the deploy config is for {codebase}, but the model is of {cfg.default_scope}')
    task_of(cfg).prepare_mmdeploy(cfg)
    pipeline = innermost_dataset(cfg.test_dataloader.dataset).pipeline
    size = deploy_config.onnx_config.get('input_shape')
    if size is None and not (deploy_config.onnx_config.get('dynamic_axes') or _resizes_to_one_size(pipeline)):
        size = cfg.get('input_size')
        if size is None:
            raise UserError(
                'images of this config keep their aspect ratio, but a static file has one size: set it by '
                '--cfg-options "onnx_config.input_shape=[512, 512]" (width, height)'
            )
    if size is not None:
        if not isinstance(size, list | tuple) or len(size) != 2 or any(type(a) is not int or a < 1 for a in size):
            raise UserError(f'onnx_config.input_shape must be width and height in pixels, got {size}')
        deploy_config.onnx_config.input_shape = list(size)
        # mmdeploy does the same for the file; here it also applies to the images that are drawn.
        for step in pipeline:
            if step['type'] == 'Resize':
                step.update(scale=tuple(size), keep_ratio=False)
            elif step['type'] == 'Pad' and 'size' in step:
                step.size = tuple(size)
    cfg.test_pipeline = copy.deepcopy(pipeline)
    return deploy_config, cfg


def _resizes_to_one_size(pipeline: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        (step['type'] == 'Pad' and 'size' in step) or (step['type'] == 'Resize' and not step.get('keep_ratio'))
        for step in pipeline
    )


@contextmanager
def _mmdeploy_scope(cfg: Config) -> Iterator[None]:
    """Read checkpoints as tensors only, and restore the default scope, which mmdeploy sets but does not restore."""
    with tensors_only(), quiet_losses(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield


def export(deploy_config: Config, cfg: Config, checkpoint: str, image: np.ndarray, folder: Path, device: str) -> None:
    """Write the ONNX file to a folder. mmdeploy itself builds the model and reads the checkpoint.

    Args:
        deploy_config: Deploy config that ``fit_size`` returned.
        cfg: Config of the model that ``fit_size`` returned.
        checkpoint: Checkpoint file that fits the config.
        image: Image with which the model is traced, (H, W, 3) uint8 BGR.
        folder: Output folder.
        device: torch device.
    """
    from mmdeploy.apis import torch2onnx

    with _mmdeploy_scope(cfg):
        # Copies, because mmdeploy changes the configs it is given.
        torch2onnx(
            image,
            str(folder),
            deploy_config.onnx_config.save_file,
            copy.deepcopy(deploy_config),
            copy.deepcopy(cfg),
            f'tensors://{Path(checkpoint).absolute()}',
            device,
        )


def dump(deploy_config: Config, cfg: Config, checkpoint: str, folder: Path, device: str) -> None:
    """Write ``deploy.json``, ``pipeline.json`` and ``detail.json`` for the SDK of mmdeploy to a folder.

    Args:
        deploy_config: See ``export``.
        cfg: See ``export``.
        checkpoint: See ``export``.
        folder: Output folder.
        device: torch device.
    """
    from mmdeploy.backend.sdk.export_info import export2SDK

    with _mmdeploy_scope(cfg):
        export2SDK(copy.deepcopy(deploy_config), copy.deepcopy(cfg), str(folder), pth=checkpoint, device=device)


def load_exported(deploy_config: Config, cfg: Config, file: Path, device: str) -> nn.Module:
    """Load an exported file as a model with the same ``test_step`` as models of mmdet and mmseg.

    Args:
        deploy_config: Deploy config that ``fit_size`` returned.
        cfg: Config of the model that ``fit_size`` returned.
        file: The ONNX file.
        device: torch device.
    """
    from mmdeploy.apis import build_task_processor

    with _mmdeploy_scope(cfg):
        processor = build_task_processor(copy.deepcopy(cfg), copy.deepcopy(deploy_config), device)
        return processor.build_backend_model([str(file)], data_preprocessor_updater=processor.update_data_preprocessor)


def _draw(model: nn.Module, images: Sequence[np.ndarray], folder: Path, stem: str, show: bool) -> None:
    predict = task_of(model.cfg).predictor(model)
    for i, image in enumerate(images):
        drawn = predict(image).plot()
        write_image(folder / f'{stem}{f"_{i}" if len(images) > 1 else ""}.jpg', drawn)
        if show:
            cv2.imshow(stem, drawn)
            cv2.waitKey()


@contextmanager
def _logging(level: str) -> Iterator[None]:
    """Set the log level of mmdeploy and mmengine within this context, and drop messages about mmdeploy's own code."""
    loggers = [MMLogger.get_current_instance(), MMLogger.get_instance('mmdeploy')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
        logger.addFilter(_is_relevant)
    try:
        yield
    finally:
        for logger, old_level in zip(loggers, levels, strict=True):
            logger.setLevel(old_level)
            logger.removeFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Return False for messages that mmdeploy's own code causes, whatever the model."""
    text = record.getMessage()
    return not ('Failed to search registry' in text or text.startswith('DeprecationWarning: get_'))
