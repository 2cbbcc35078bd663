"""Run exported files with numpy, OpenCV and the file's runtime, without OpenMMLab. Only ExecuTorch needs PyTorch."""

from mnv4_mm.runtime.meta import Meta, read_meta
from mnv4_mm.runtime.predictor import Predictor, load
from mnv4_mm.runtime.results import ClassMap, Detections

__all__ = ['ClassMap', 'Detections', 'Meta', 'Predictor', 'load', 'read_meta']
