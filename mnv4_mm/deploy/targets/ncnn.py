"""ncnn: a ``.ncnn.param`` and a ``.ncnn.bin``, converted from ONNX by pnnx; int8 by ``quantize_ncnn``."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.layers_file import write_layers
from mnv4_mm.deploy.quantize_ncnn import quantize_ncnn
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import float_onnx
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Precision

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class Ncnn(Target):
    name = 'ncnn'
    converter = ('pnnx', 'onnx', 'onnxscript')
    kinds = ('raw', 'logits')
    precisions = ('fp32', 'fp16', 'int8')
    calibrates_again = True
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
        model, quantised = float_onnx(graph, precision, calibration)
        (folder / 'net.onnx').write_bytes(model.SerializeToString())
        shape = ','.join(map(str, graph.example().shape))
        weights = path.with_suffix('.bin')
        # Set explicitly, because pnnx writes weights in fp16 by default.
        command = [pnnx.EXEC_PATH, 'net.onnx', f'inputshape=[{shape}]f32', f'fp16={int(precision == "fp16")}']
        command += [f'ncnnparam={path.absolute()}', f'ncnnbin={weights.absolute()}']
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
        if done.returncode or not path.is_file() or not weights.is_file():
            raise UserError(f'pnnx failed: {(done.stderr.strip().splitlines() or ["no reason given"])[-1]}')
        shutil.rmtree(folder)
        note = ''
        if quantised:
            count, total = quantize_ncnn(path, calibration, quantised.sensitive, plain=graph.plain_int8)
            note = f'in ncnn {count} of {total} convolutions in int8'
            if not graph.plain_int8:
                note += ', the first one and depthwise ones in float, too, and ranges of least error of its own'
        return [path, weights, *write_layers(path, quantised, graph.calibration, note=note)]
