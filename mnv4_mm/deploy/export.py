"""Conversion of a checkpoint to the file formats of runtimes. Called by ``tools/export.py``."""

import copy
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.apis.model import load_model
from mnv4_mm.config.data import dataset_split, restore_data
from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.data.coco_files import Split
from mnv4_mm.deploy.arguments import check_export, output_folder
from mnv4_mm.deploy.artifacts import Artifact
from mnv4_mm.deploy.calibration import MAX_CALIBRATION_IMAGES, CalibrationImages, calibration_files, evenly
from mnv4_mm.deploy.describe import describe, source_of
from mnv4_mm.deploy.graph import Graph, build_graph, reference
from mnv4_mm.deploy.layers_file import LAYERS_SUFFIX, describe_layers
from mnv4_mm.deploy.sample import write_sample
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.verify import MAX_IMAGES, MismatchError, Verification, check_file, verify
from mnv4_mm.engine.qat import NAME as QAT
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.paths import check_not_empty, make_output_folder
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Kind, Meta, Precision, sha256, sidecar
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.tasks import task_of
from mnv4_mm.weights.checkpoint import read_checkpoint

SAMPLE = REPOSITORY / 'data/mini/coco/val2017/000000005001.jpg'  # image for <file>.sample.json


def export(
    checkpoint: str,
    to: Sequence[str],
    *,
    config: str | None = None,
    out_dir: str | None = None,
    size: Sequence[int] | None = None,
    dynamic: bool = False,
    precision: Precision = 'fp32',
    kind: Kind | None = None,
    normalise: bool = False,
    calibration: str | None = None,
    plain_int8: bool = False,
    unchecked: bool = False,
    log: Callable[[str], None] = print,
) -> list[Path]:
    """Convert a checkpoint to one or more runtimes, and compare each file with PyTorch.

    A file that differs from PyTorch by more than its precision explains (``verify.LIMITS``) is not written; the other
    targets are converted nevertheless.

    Args:
        checkpoint: Checkpoint file written by ``mnv4 train``.
        to: Names of targets, see ``TARGETS``.
        config: Path or name of a config to use instead of the one in the checkpoint.
        out_dir: Output folder; ``exported`` beside the checkpoint if left out. Files of the same name are replaced.
        size: Height and width of the input in pixels, multiples of 32. If left out, the size to which the config's test
            pipeline resizes; for a segmenter whose images keep their aspect ratio, the size of a training crop.
        dynamic: Let the file take inputs of any height and width that are multiples of 32.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        kind: Outputs of the file. Detection: ``nms`` (selected boxes) or ``raw`` (all boxes and their scores).
            Segmentation: ``class_map`` (class of each pixel) or ``logits`` (of the head). If left out, ``nms`` or
            ``class_map`` where the target has it, otherwise ``raw`` or ``logits``.
        normalise: Let the caller normalise the input, instead of the graph. The input is then NCHW float32.
        calibration: Folder of images for the calibration of int8 files and for the comparison with PyTorch. If left
            out, the training images of the config. If these are missing, the comparison uses the images of
            ``data/mini``, and calibration fails.
        plain_int8: Leave out the steps that raise the accuracy of int8 files, to see what these steps gain. The stem
            of the file name then ends with ``_plain``.
        unchecked: Also write files that differ from PyTorch.
        log: Function that prints a line.

    Returns:
        The exported files, in the order of ``to``. Each one has its metadata (``.json``, see ``Meta``) beside it and,
        in a clone, the expected numbers for a sample image (``.sample.json`` and ``.sample.png``, see ``sample``).

    Raises:
        UserError: An argument is invalid, the checkpoint or the images for calibration cannot be read, or a package is
            not installed; nothing has been written then. Or a conversion fails, or a file differs from PyTorch; the
            other files have been written then.
    """
    check_not_empty(config=config)
    targets = check_export(
        checkpoint,
        to,
        out_dir=out_dir,
        size=size,
        dynamic=dynamic,
        precision=precision,
        kind=kind,
        calibration=calibration,
        plain_int8=plain_int8,
    )
    loaded = read_checkpoint(checkpoint)
    model = load_model(loaded, config, device='cpu')
    # All targets are checked before anything is written.
    metas = [
        dataclasses.replace(
            describe(model, target, kind=kind, precision=precision, size=size, dynamic=dynamic, normalise=normalise),
            source=source_of(loaded, model, target),
        )
        for target in targets
    ]
    cfg: Any = model.cfg
    settings = cfg.get(QAT)
    if settings and precision != 'int8':
        raise UserError(
            f'{loaded.path} has been fine-tuned for int8: use --precision int8. For {precision}, export the checkpoint '
            f'that it was started from, {settings.checkpoint}'
        )
    if settings and plain_int8:
        raise UserError(f'{loaded.path} has been fine-tuned for int8 and keeps its scales: leave out --plain-int8')
    needs_images = precision == 'int8' and (not settings or any(target.calibrates_again for target in targets))
    images = _calibration_images(model, calibration) if needs_images else None
    if images:
        log(f'calibration: {images}')
        images.check()
    compared = evenly(images.files if images else _images_to_compare(model, calibration), MAX_IMAGES)
    folder = make_output_folder('--out-dir', output_folder(checkpoint, out_dir))
    if not SAMPLE.is_file():
        log(f'no {SAMPLE} (only a clone has it): the expected numbers for a sample image are not written')
    suffix = '_dynamic' if dynamic else f'_{size[0]}x{size[1]}' if size else ''
    suffix += '_normalised' if normalise else ''
    suffix += '_plain' if plain_int8 else ''
    paths, refused = [], []
    for target, meta in zip(targets, metas, strict=True):
        path = folder / f'{loaded.path.stem}_{meta.kind}_{precision}{suffix}{target.suffix}'
        try:
            graph = dataclasses.replace(
                build_graph(model, meta, without_scales=target.calibrates_again),
                plain_int8=plain_int8,
                calibration=images.names if images else (),
            )
            calibrated, inputs = (
                [prepare(read_image(image), meta.input, meta.resize)[0] for image in files]
                for files in (images.files if images else [], compared)
            )
            written, result = write(graph, target, path, calibrated, reference(model, meta), inputs, unchecked)
        except MismatchError as error:
            refused.append(f'{path.name} is not written: {error} (--unchecked writes it nevertheless)')
            continue
        except UserError as error:  # the converter has failed; the other targets may still be converted
            refused.append(f'{path.name} is not written: {error}')
            continue
        log(f'{path} {Artifact(path, written).megabytes:.1f} MB; {_text(result, len(inputs))}')
        if quantisation := describe_layers(path):
            log(f'{path.name}: {quantisation}')
        paths.append(path)
    if refused:
        raise UserError('; '.join(refused))
    return paths


def _text(result: Verification | None, count: int) -> str:
    if result is None:
        return 'not compared with PyTorch: ' + (
            'it cannot run here' if count else 'there are no images; name a folder of images by --calibration'
        )
    if result.inconclusive:
        return f'not compared with PyTorch: {result.inconclusive}'
    return f'compared with PyTorch on {count} images: {result}'


def write(
    graph: Graph,
    target: Target,
    path: Path,
    calibration: Sequence[np.ndarray] = (),
    pytorch: Predictor | None = None,
    inputs: Sequence[np.ndarray] = (),
    unchecked: bool = False,
) -> tuple[Meta, Verification | None]:
    """Convert a graph and write the file and its metadata. Existing files are replaced.

    All files are written to a temporary folder and are moved to their place when they are complete.

    Args:
        graph: The graph.
        target: The target.
        path: The file to write.
        calibration: See ``Target.convert``.
        pytorch: The PyTorch model, see ``reference``. If given, the file is compared with this model, and the expected
            numbers for the sample image are written too: those of PyTorch and, if the file can run on this machine,
            those of the file.
        inputs: Batches of real images, one image each, for the comparison.
        unchecked: Also write a file that differs from PyTorch.

    Returns:
        The metadata with the checksums of all files, and the result of the comparison. The latter is None if nothing
        was compared, because ``pytorch`` or ``inputs`` is missing or the file cannot run on this machine.

    Raises:
        MismatchError: The file differs from PyTorch by more than its precision explains, and ``unchecked`` is False.
        UserError: The conversion fails, or the outputs cannot be compared, see ``verify``.
    """
    # A temporary folder in the output folder: renaming is atomic only within a file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export-') as folder:
        temporary = Path(folder) / path.name
        outputs = target.convert(graph, temporary, graph.meta.precision, calibration)
        files = [file for output in outputs for file in ([output] if output.is_file() else sorted(output.rglob('*')))]
        # The list of layers is for information only; the exported file works without it.
        files = [file for file in files if file.is_file() and not file.name.endswith(LAYERS_SUFFIX)]
        meta = dataclasses.replace(graph.meta, files={str(file.relative_to(folder)): sha256(file) for file in files})
        sidecar(temporary).write_text(meta.to_json())
        result = None
        if pytorch:
            can_run = not target.absent() and not target.cannot_run()
            predictor = load(temporary) if can_run else None
            if unchecked:
                result = verify(pytorch, predictor, inputs) if predictor and inputs else None
            else:
                if target.cannot_run():
                    target.inspect(temporary, meta)
                result = check_file(graph, pytorch, predictor, inputs)
            if SAMPLE.is_file():
                outputs += write_sample(predictor, pytorch, SAMPLE, temporary)
            del predictor  # Windows does not move files that are open
        if not any(output.name.endswith(LAYERS_SUFFIX) for output in outputs):
            path.with_name(path.name + LAYERS_SUFFIX).unlink(missing_ok=True)  # that of a file that is replaced
        # The metadata last: a file without it, or with metadata that does not match, is not loaded.
        for output in (*outputs, sidecar(temporary)):
            destination = path.parent / output.name
            if destination.is_dir():
                shutil.rmtree(destination)
            output.replace(destination)
    return meta, result


def _calibration_images(model: Any, folder: str | None) -> CalibrationImages:
    """Return images for calibration, spread evenly over a folder or over the training images of the config.

    Raises:
        UserError: There are no images, or the data set of the config cannot be used.
    """
    if folder:
        files = calibration_files(Path(folder))
        return CalibrationImages(f'--calibration {folder}', Path(folder), evenly(files, MAX_CALIBRATION_IMAGES))
    # The list of training images is in the cache folder, which may be gone. Without the list, all images would count
    # as training images.
    cfg = restore_data(copy.deepcopy(model.cfg), remedy='--calibration names a folder of images')
    split = dataset_split(cfg, 'train_dataloader')
    files = task_of(cfg).image_files(split)
    if not files:
        named = f', or {split.annotations} names none of them' if isinstance(split, Split) else ''
        raise UserError(f'no images for calibration in {split.images}{named}: name a folder of images by --calibration')
    return CalibrationImages('the training images', split.images, evenly(files, MAX_CALIBRATION_IMAGES))


def _images_to_compare(model: Any, folder: str | None) -> list[Path]:
    """Return the images for calibration or, if the config has none, those of ``data/mini``, which only a clone has."""
    try:
        return _calibration_images(model, folder).files
    except UserError:
        if folder:
            raise
        return sorted(SAMPLE.parent.glob('*.jpg'))
