"""OpenVINO: an ``.xml`` and a ``.bin``, converted from ONNX."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.quantize import quantize_openvino
from mnv4_mm.deploy.sensitivity import LayerSensitivity, write_layers
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import TAIL, to_int8, to_onnx
from mnv4_mm.runtime.meta import META_KEY, Precision
from mnv4_mm.runtime.quiet import without_telemetry

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class OpenVINO(Target):
    name = 'openvino'
    converter = ('onnx', 'onnxscript', 'onnxruntime', 'nncf')
    kinds = ('nms', 'raw', 'class_map', 'logits')
    precisions = ('fp32', 'fp16', 'int8')
    dynamic = True
    distributions = ('openvino',)

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        ov = without_telemetry('openvino')
        model = ov.Core().read_model(to_onnx(graph)[0].SerializeToString())
        layers: list[LayerSensitivity] = []
        if precision == 'int8':
            quantised = to_int8(graph, calibration)
            model, layers = quantize_openvino(model, calibration, quantised.float_nodes, TAIL), quantised.layers
        model.set_rt_info(graph.meta.to_json(), META_KEY)
        # Set explicitly, because OpenVINO writes weights in fp16 by default.
        ov.save_model(model, path, compress_to_fp16=precision == 'fp16')
        return [path, path.with_suffix('.bin'), *write_layers(path, layers)]
