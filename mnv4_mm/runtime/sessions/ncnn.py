"""ncnn files: a ``.ncnn.param`` and a ``.ncnn.bin``.

They take planar float pixels, as ``ncnn::Mat::from_pixels`` returns.
"""

from pathlib import Path

import numpy as np

from mnv4_mm.runtime.meta import OUTPUTS, Meta
from mnv4_mm.runtime.sessions.base import Runtime, Session, unloadable


class NcnnRuntime(Runtime):
    name = 'ncnn'
    suffix = '.ncnn.param'
    modules = ('ncnn',)

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        import ncnn

        net = ncnn.Net()
        if threads:
            net.opt.num_threads = threads
        # Set explicitly, because the default is half precision where the CPU supports it.
        is_half = meta.precision == 'fp16'
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = is_half
        net.opt.use_bf16_storage = False
        for load, file in ((net.load_param, path), (net.load_model, path.with_suffix('.bin'))):
            if load(str(file)):
                raise unloadable(file, ValueError('ncnn gives no reason'))
        names = [f'out{i}' for i in range(len(OUTPUTS[meta.kind]))]

        def run(batch: np.ndarray) -> list[np.ndarray]:
            with net.create_extractor() as extractor:
                extractor.input('in0', ncnn.Mat(batch[0]))
                outputs = [extractor.extract(name) for name in names]
                return [np.array(value)[None] for _, value in outputs]

        return run
