"""OpenVINO: an ``.xml`` and a ``.bin``, converted from ONNX."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.layers_file import write_layers
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import to_onnx
from mnv4_mm.runtime.meta import META_KEY, Precision
from mnv4_mm.runtime.quiet import without_telemetry

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class OpenVINO(Target):
    name = 'openvino'
    converter = ('onnx', 'onnxscript', 'onnxruntime')
    kinds = ('nms', 'raw', 'class_map', 'logits')
    precisions = ('fp32', 'fp16', 'bf16', 'int8')
    dynamic = True
    distributions = ('openvino',)

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        ov = without_telemetry('openvino')
        # OpenVINO compresses to fp16 itself. It runs ONNX's QDQ form in 8 bits: at least as fast as a net quantised by
        # NNCF, and with the scales of the ONNX file.
        converted, quantised = to_onnx(graph, 'int8' if precision == 'int8' else 'fp32', calibration)
        model = ov.Core().read_model(converted.SerializeToString())
        model.set_rt_info(graph.meta.to_json(), META_KEY)
        # Set explicitly, because OpenVINO writes weights in fp16 by default.
        ov.save_model(model, path, compress_to_fp16=precision == 'fp16')
        return [path, path.with_suffix('.bin'), *write_layers(path, quantised, graph.calibration)]
