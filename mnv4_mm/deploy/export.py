"""Checkpoint -> files of runtimes: what ``tools/export.py`` calls."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.apis.model import load_model
from mnv4_mm.config.data import dataset_split
from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.deploy.describe import describe, source_of
from mnv4_mm.deploy.graph import Graph, build_graph, reference
from mnv4_mm.deploy.int8 import LIST
from mnv4_mm.deploy.sample import write_sample
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES, read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Kind, Meta, Precision, sha256, sidecar
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare

CALIBRATION = 64  # pictures, at most
SAMPLE = REPOSITORY / 'data/mini/coco/val2017/000000005001.jpg'  # what each file's expected numbers are of


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
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Converts a checkpoint.

    Args:
        checkpoint: File written by ``tools/train.py``.
        to: Names of ``TARGETS``.
        config: Config to use instead of the one inside the checkpoint.
        out_dir: Where to write; ``exported`` beside the checkpoint if left out.
        size: See ``describe``.
        dynamic: See ``describe``.
        precision: ``fp32``, ``fp16`` or ``int8``.
        kind: See ``describe``.
        normalise: See ``describe``.
        calibration: For int8: folder of pictures; the config's training pictures if left out.
        say: Where lines go.

    Returns:
        The files to load, in the order of ``to``. Each has beside it what it says of itself (``.json``, see ``Meta``)
        and what it must give for a sample picture (``.sample.json``, see ``sample``).

    Raises:
        UserError: a bad argument, an unreadable checkpoint, or an absent runtime; nothing is written then.
    """
    unknown = [name for name in to if name not in TARGETS]
    if unknown:
        raise UserError(f'--to {unknown[0]}: there are {", ".join(TARGETS)}')
    targets = [TARGETS[name] for name in dict.fromkeys(to)]
    absent = [line for target in targets if (line := target.absent(convert=True))]
    if absent:
        raise UserError('; '.join(absent))
    model = load_model(checkpoint, config, device='cpu')
    # All are checked before any is made.
    metas = [
        dataclasses.replace(
            describe(model, target, kind=kind, precision=precision, size=size, dynamic=dynamic, normalise=normalise),
            source=source_of(Path(checkpoint), model, target),
        )
        for target in targets
    ]
    # LiteRT's layers that 8 bits hurt are found in ONNX's.
    if precision == 'int8' and (missing := TARGETS['onnx'].absent(convert=True)):
        raise UserError(f'--precision int8 needs ONNX Runtime: {missing}')
    out = Path(out_dir) if out_dir else Path(checkpoint).parent / 'exported'
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out-dir {out} cannot be made: {error.strerror}') from error
    if not SAMPLE.is_file():
        say(f'no {SAMPLE}: expected numbers of a sample picture are not written (a clone has it)')
    options = '_dynamic' if dynamic else f'_{size[0]}x{size[1]}' if size else ''
    options += '_normalised' if normalise else ''
    paths = []
    for target, meta in zip(targets, metas, strict=True):
        graph = build_graph(model, meta)
        batches = _calibration(model, meta, calibration) if precision == 'int8' else ()
        path = out / f'{Path(checkpoint).stem}_{meta.kind}_{precision}{options}{target.suffix}'
        written = write(graph, target, path, batches, reference(model, meta) if SAMPLE.is_file() else None)
        say(f'{path} {_megabytes(path, written):.1f} MB')
        paths.append(path)
    return paths


def write(
    graph: Graph,
    target: Target,
    path: Path,
    calibration: Sequence[np.ndarray] = (),
    by: Predictor | None = None,
) -> Meta:
    """Writes a graph and its JSON whole, or not at all; returns what the JSON says.

    Args:
        graph: What is to be in the file.
        target: The runtime.
        path: The file.
        calibration: See ``Target.convert``.
        by: PyTorch. If given, the sample's numbers are written, too: the file's own, or PyTorch's where it cannot run.
    """
    # Beside where it goes: renaming works within a file system only.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export-') as folder:
        parts = target.convert(graph, Path(folder) / path.name, graph.meta.precision, calibration)
        files = [file for part in parts for file in ([part] if part.is_file() else sorted(part.rglob('*')))]
        # A list of layers is for people: the file works without it.
        files = [file for file in files if file.is_file() and not file.name.endswith(LIST)]
        hashes = {str(file.relative_to(folder)): sha256(file) for file in files}
        meta = dataclasses.replace(graph.meta, files=hashes)
        own = sidecar(Path(folder) / path.name)
        own.write_text(meta.to_json())
        if by:
            runs = not target.absent() and not target.cannot_run()
            parts.append(write_sample(load(Path(folder) / path.name) if runs else by, SAMPLE, Path(folder) / path.name))
        # The JSON last: without it, or with one that does not fit, no file is loaded.
        for part in (*parts, own):
            goal = path.parent / part.name
            if goal.is_dir():
                shutil.rmtree(goal)
            part.replace(goal)
    return meta


def _calibration(model: Any, meta: Meta, folder: str | None) -> list[np.ndarray]:
    """Real pictures as inputs, for int8: spread over a folder, or over the config's training pictures."""
    root = Path(folder) if folder else dataset_split(model.cfg, 'train_dataloader').images
    files = sorted(file for file in root.rglob('*') if file.suffix.lower() in IMAGE_SUFFIXES) if root.is_dir() else []
    if not files:
        raise UserError(f'no pictures for calibration in {root}: name a folder of some by --calibration')
    some = [files[i] for i in np.linspace(0, len(files) - 1, min(CALIBRATION, len(files))).astype(int)]
    return [prepare(read_image(file), meta.input, meta.resize)[0] for file in some]


def _megabytes(path: Path, meta: Meta) -> float:
    return sum((path.parent / name).stat().st_size for name in meta.files) / 1e6
