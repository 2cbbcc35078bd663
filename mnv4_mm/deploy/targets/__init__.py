"""Converters to the runtimes, one module each."""

from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.coreml import CoreML
from mnv4_mm.deploy.targets.executorch import ExecuTorch
from mnv4_mm.deploy.targets.litert import LiteRT
from mnv4_mm.deploy.targets.ncnn import Ncnn
from mnv4_mm.deploy.targets.onnx import Onnx
from mnv4_mm.deploy.targets.openvino import OpenVINO
from mnv4_mm.deploy.targets.web import Web

__all__ = ['TARGETS', 'Target']

TARGETS: dict[str, Target] = {
    target.name: target for target in (Onnx(), OpenVINO(), Ncnn(), CoreML(), LiteRT(), ExecuTorch(), Web())
}
