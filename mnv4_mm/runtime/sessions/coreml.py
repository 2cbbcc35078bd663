"""Core ML packages, run on macOS only."""

import platform
from pathlib import Path

import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import OUTPUTS, Meta
from mnv4_mm.runtime.quiet import coremltools
from mnv4_mm.runtime.sessions.base import Runtime, Session


class CoreMLRuntime(Runtime):
    name = 'coreml'
    suffix = '.mlpackage'
    modules = ('coremltools', 'PIL')  # coremltools takes Pillow images

    def cannot_run(self) -> str | None:
        system = platform.system()
        return None if system == 'Darwin' else f'Core ML runs on macOS and iOS only, not on {system}'

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        reason = self.cannot_run()
        if reason:
            raise UserError(f'{path}: {reason}')
        from PIL import Image

        ct = coremltools()
        model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.CPU_ONLY)

        def run(batch: np.ndarray) -> list[np.ndarray]:
            pixels = batch[0].transpose(1, 2, 0).astype(np.uint8)
            if meta.input.channel_order == 'BGR':  # the model converts RGB to BGR itself
                pixels = pixels[..., ::-1]
            image = batch if meta.input.normalise else Image.fromarray(np.ascontiguousarray(pixels))
            outputs = model.predict({'image': image})
            return [outputs[name] for name in OUTPUTS[meta.kind]]

        return run
