"""OpenVINO files: an ``.xml`` and a ``.bin``."""

from pathlib import Path
from typing import Any

import numpy as np

from mnv4_mm.runtime.meta import Meta
from mnv4_mm.runtime.quiet import without_telemetry
from mnv4_mm.runtime.sessions.base import Runtime, Session, unloadable


class OpenVINORuntime(Runtime):
    name = 'openvino'
    suffix = '.xml'
    modules = ('openvino',)

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        ov = without_telemetry('openvino')
        # Set explicitly, because the default is bf16 where the CPU supports it.
        hint = 'bf16' if meta.precision == 'bf16' else 'f32'
        settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': hint, 'PERFORMANCE_HINT': 'LATENCY'}
        if threads:
            settings['INFERENCE_NUM_THREADS'] = threads
        try:
            compiled = ov.Core().compile_model(path, 'CPU', settings)
        # OpenVINO raises RuntimeError and others.
        except Exception as error:
            raise unloadable(path, error) from error
        request = compiled.create_infer_request()
        count = len(compiled.outputs)

        def run(batch: np.ndarray) -> list[np.ndarray]:
            outputs = request.infer([batch])
            return [outputs[i] for i in range(count)]

        return run
