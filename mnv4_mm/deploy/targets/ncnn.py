"""ncnn: a ``.ncnn.param`` and a ``.ncnn.bin``, converted from ONNX by pnnx."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import to_onnx
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Precision

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class Ncnn(Target):
    name = 'ncnn'
    converter = ('pnnx', 'onnx', 'onnxscript')
    kinds = ('raw', 'logits')
    precisions = ('fp32', 'fp16')
    distributions = ('ncnn', 'pnnx')
    layout = 'NCHW'
    dtype = 'float32'

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        import pnnx

        folder = path.parent / 'pnnx'
        folder.mkdir()
        # pnnx takes ONNX or TorchScript, which torch is about to drop.
        (folder / 'net.onnx').write_bytes(to_onnx(graph)[0].SerializeToString())
        shape = ','.join(map(str, graph.example().shape))
        weights = path.with_suffix('.bin')
        # Set explicitly, because pnnx writes weights in fp16 by default.
        command = [pnnx.EXEC_PATH, 'net.onnx', f'inputshape=[{shape}]f32', f'fp16={int(precision == "fp16")}']
        command += [f'ncnnparam={path.absolute()}', f'ncnnbin={weights.absolute()}']
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
        if done.returncode or not path.is_file() or not weights.is_file():
            raise UserError(f'pnnx failed: {(done.stderr.strip().splitlines() or ["no reason given"])[-1]}')
        shutil.rmtree(folder)
        return [path, weights]
