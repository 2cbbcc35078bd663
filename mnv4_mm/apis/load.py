"""Load a trained model, from a checkpoint or an exported file. PyTorch is imported for checkpoints only."""

from pathlib import Path
from typing import TYPE_CHECKING

from mnv4_mm import runtime
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_checkpoint
from mnv4_mm.runtime.meta import sidecar
from mnv4_mm.runtime.sessions import RUNTIMES

if TYPE_CHECKING:
    from mnv4_mm.apis.model import TorchPredictor


def is_exported(path: str | Path) -> bool:
    """Return True for an exported file, known by its suffix or the JSON file beside it, False for any other."""
    suffixes = tuple(runtime.suffix for runtime in RUNTIMES.values())
    return str(path).endswith(suffixes) or sidecar(Path(path)).is_file()


def load(
    path: str | Path,
    *,
    config: str | None = None,
    device: str | None = None,
    inference: str | None = None,
    threads: int | None = None,
    fast_jpeg: bool = False,
) -> 'runtime.Predictor | TorchPredictor':
    """Load a trained model.

        detections = load('best.onnx')('street.jpg')
        detections.boxes, detections.scores, detections.labels

    Args:
        path: Checkpoint written by ``mnv4 train``, or file written by ``mnv4 export``.
        config: For a checkpoint: config to use instead of the one inside.
        device: For a checkpoint: torch device; by default the GPU if there is one.
        inference: For a checkpoint of a segmenter: ``whole`` images or ``slide`` for windows; the config's if None.
        threads: For an exported file: number of threads; the default of its runtime if None.
        fast_jpeg: For an exported file: decode JPEG files at a reduced size, see ``runtime.predictor.Predictor``.

    Returns:
        A predictor. Called with an image, a file or (H, W, 3) uint8 BGR, it returns ``runtime.Detections`` or
        ``runtime.ClassMap``.

    Raises:
        UserError: The file cannot be read, an argument does not fit it, or its runtime is not installed.
    """
    if is_exported(path):
        for name, value in (('config', config), ('device', device), ('inference', inference)):
            if value is not None:
                raise UserError(f'{name}={value!r} is for checkpoints; {path} is an exported file')
        return runtime.load(path, threads, fast_jpeg=fast_jpeg)
    if fast_jpeg:
        raise UserError(f'fast_jpeg is for exported files; {path} is a checkpoint')
    if threads is not None:
        raise UserError(f'threads is for exported files; {path} is a checkpoint: use torch.set_num_threads')
    check_checkpoint(path)
    if inference is not None:
        from mnv4_mm.config.index import find_config
        from mnv4_mm.config.rules import check_inference
        from mnv4_mm.config.source import read_checkpoint_source, read_source

        source = read_source(find_config(config)) if config else read_checkpoint_source(Path(path))
        check_inference(source or {})
    from mnv4_mm.apis.model import TorchPredictor, load_model

    return TorchPredictor(load_model(str(path), config, device, inference))
