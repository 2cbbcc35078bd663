"""The runtimes, a file each."""

from pathlib import Path

from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.coreml import CoreML
from mnv4_mm.deploy.targets.executorch import ExecuTorch
from mnv4_mm.deploy.targets.litert import LiteRT
from mnv4_mm.deploy.targets.ncnn import Ncnn
from mnv4_mm.deploy.targets.onnx import Onnx
from mnv4_mm.deploy.targets.openvino import OpenVINO
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import read_meta, sidecar
from mnv4_mm.runtime.predictor import Predictor

TARGETS: dict[str, Target] = {
    target.name: target for target in (Onnx(), OpenVINO(), Ncnn(), CoreML(), LiteRT(), ExecuTorch())
}


def load(path: str | Path, threads: int | None = None) -> Predictor:
    """Loads a file written by ``tools/export.py``.

    Args:
        path: The file; its JSON must be beside it.
        threads: How many the runtime is to use; its own choice if left out.

    Raises:
        UserError: the file is missing, damaged, or its runtime is not installed.
    """
    path = Path(path)
    meta = read_meta(path)
    if meta.target not in TARGETS:
        raise UserError(f'{sidecar(path)} cannot be read: there is no runtime {meta.target!r}')
    target = TARGETS[meta.target]
    absent = target.absent()
    if absent:
        raise UserError(absent)
    return Predictor(meta, target.session(path, meta, threads))
