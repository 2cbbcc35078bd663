"""The runtimes of exported files, one module each."""

from mnv4_mm.runtime.sessions.base import Runtime, Session
from mnv4_mm.runtime.sessions.coreml import CoreMLRuntime
from mnv4_mm.runtime.sessions.executorch import ExecuTorchRuntime
from mnv4_mm.runtime.sessions.litert import LiteRTRuntime
from mnv4_mm.runtime.sessions.ncnn import NcnnRuntime
from mnv4_mm.runtime.sessions.onnx import OnnxRuntime
from mnv4_mm.runtime.sessions.openvino import OpenVINORuntime
from mnv4_mm.runtime.sessions.web import WebRuntime

__all__ = ['RUNTIMES', 'Runtime', 'Session']

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        OnnxRuntime(),
        OpenVINORuntime(),
        NcnnRuntime(),
        CoreMLRuntime(),
        LiteRTRuntime(),
        ExecuTorchRuntime(),
        WebRuntime(),
    )
}
