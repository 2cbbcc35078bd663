"""ncnn: a pair of files, by pnnx. It takes planar float pixels: ncnn::Mat::from_pixels makes them of a camera's."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.targets.base import Target, unloadable
from mnv4_mm.deploy.targets.onnx import to_onnx
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import OUTPUTS, Meta, Precision
from mnv4_mm.runtime.predictor import Session

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class Ncnn(Target):
    name = 'ncnn'
    suffix = '.ncnn.param'
    runtime = ('ncnn',)
    converter = ('pnnx', 'onnx', 'onnxscript')
    install = "pip install -e '.[ncnn]'"
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
        # Not TorchScript, which torch is about to drop.
        (folder / 'net.onnx').write_bytes(to_onnx(graph)[0].SerializeToString())
        shape = ','.join(map(str, graph.example().shape))
        weights = path.with_suffix('.bin')
        # Left alone it writes weights as fp16.
        command = [pnnx.EXEC_PATH, 'net.onnx', f'inputshape=[{shape}]f32', f'fp16={int(precision == "fp16")}']
        command += [f'ncnnparam={path.absolute()}', f'ncnnbin={weights.absolute()}']
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
        if done.returncode or not path.is_file() or not weights.is_file():
            raise UserError(f'pnnx failed: {(done.stderr.strip().splitlines() or ["no reason given"])[-1]}')
        shutil.rmtree(folder)
        return [path, weights]

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        import ncnn

        net = ncnn.Net()
        if threads:
            net.opt.num_threads = threads
        # Left alone it computes in half precision where the CPU can.
        half = meta.precision == 'fp16'
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
        net.opt.use_bf16_storage = False
        for load, file in ((net.load_param, path), (net.load_model, path.with_suffix('.bin'))):
            if load(str(file)):
                raise unloadable(file, ValueError('ncnn gives no reason'))
        outputs = [f'out{i}' for i in range(len(OUTPUTS[meta.kind]))]

        def run(batch: np.ndarray) -> list[np.ndarray]:
            with net.create_extractor() as extractor:
                extractor.input('in0', ncnn.Mat(batch[0]))
                found = [extractor.extract(name) for name in outputs]
                return [np.array(value)[None] for _, value in found]

        return run
