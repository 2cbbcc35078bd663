"""Folders that are exported for the browser. ONNX Runtime runs their ONNX file in Python, without a browser."""

from pathlib import Path

from mnv4_mm.runtime.meta import Meta
from mnv4_mm.runtime.sessions.base import Session, missing_message
from mnv4_mm.runtime.sessions.onnx import OnnxRuntime


class WebRuntime(OnnxRuntime):
    name = 'web'
    suffix = '.web'

    def absent(self) -> str | None:
        return missing_message(self.name, self.modules, OnnxRuntime.name)

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        return super().session(path / f'{path.stem}{OnnxRuntime.suffix}', meta, threads)
