"""ONNX files, run by ONNX Runtime."""

from pathlib import Path

from mnv4_mm.runtime.meta import OUTPUTS, Meta
from mnv4_mm.runtime.sessions.base import Runtime, Session, unloadable


class OnnxRuntime(Runtime):
    name = 'onnx'
    suffix = '.onnx'
    modules = ('onnxruntime',)

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # level 2 warns about every shape that the file leaves open
        try:
            session = ort.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        # ONNX Runtime's exceptions have no other common base.
        except Exception as error:
            raise unloadable(path, error) from error
        names = list(OUTPUTS[meta.kind])
        name = session.get_inputs()[0].name
        return lambda batch: session.run(names, {name: batch})
