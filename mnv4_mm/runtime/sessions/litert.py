"""LiteRT (formerly TensorFlow Lite) files."""

import os
from pathlib import Path

import numpy as np

from mnv4_mm.runtime.meta import OUTPUTS, Meta
from mnv4_mm.runtime.sessions.base import Runtime, Session, unloadable


class LiteRTRuntime(Runtime):
    name = 'litert'
    suffix = '.tflite'
    modules = ('ai_edge_litert',)

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        from ai_edge_litert.interpreter import Interpreter

        try:
            # The default is one thread.
            interpreter = Interpreter(str(path), num_threads=threads or os.cpu_count())
            interpreter.allocate_tensors()
            signature = interpreter.get_signature_runner()
            image = signature.get_input_details()['image']['index']
            # Outputs are looked up by name, because a file may have them in any order.
            indices = [signature.get_output_details()[name]['index'] for name in OUTPUTS[meta.kind]]
        # LiteRT raises ValueError, RuntimeError and others.
        except Exception as error:
            raise unloadable(path, error) from error

        def run(batch: np.ndarray) -> list[np.ndarray]:
            interpreter.set_tensor(image, batch)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in indices]  # copies

        return run
