"""OpenVINO: a pair of files, made from the ONNX graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnv4_mm.deploy.quantize import quantize_openvino
from mnv4_mm.deploy.quiet import without_telemetry
from mnv4_mm.deploy.sensitivity import LayerSensitivity, write_layers
from mnv4_mm.deploy.targets.base import Target, unloadable
from mnv4_mm.deploy.targets.onnx import TAIL, to_int8, to_onnx
from mnv4_mm.runtime.meta import META_KEY, Meta, Precision
from mnv4_mm.runtime.predictor import Session

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class OpenVINO(Target):
    name = 'openvino'
    suffix = '.xml'
    runtime = ('openvino',)
    converter = ('onnx', 'onnxscript', 'onnxruntime', 'nncf')
    install = "pip install -e '.[openvino]'"
    kinds = ('nms', 'raw', 'class_map', 'logits')
    precisions = ('fp32', 'fp16', 'int8')
    dynamic = True
    distributions = ('openvino',)

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        ov = without_telemetry('openvino')
        model = ov.Core().read_model(to_onnx(graph)[0].SerializeToString())
        errors: list[LayerSensitivity] = []
        if precision == 'int8':
            quantised = to_int8(graph, calibration)
            model, errors = quantize_openvino(model, calibration, quantised.float_nodes, TAIL), quantised.layers
        model.set_rt_info(graph.meta.to_json(), META_KEY)
        # Left alone it writes weights as fp16.
        ov.save_model(model, path, compress_to_fp16=precision == 'fp16')
        return [path, path.with_suffix('.bin'), *write_layers(path, errors)]

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        ov = without_telemetry('openvino')
        # Left alone it computes in bf16 where the CPU can.
        settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
        if threads:
            settings['INFERENCE_NUM_THREADS'] = threads
        try:
            compiled = ov.Core().compile_model(path, 'CPU', settings)
        # OpenVINO raises RuntimeError and others, whatever is wrong.
        except Exception as error:
            raise unloadable(path, error) from error
        request = compiled.create_infer_request()
        outputs = range(len(compiled.outputs))

        def run(batch: np.ndarray) -> list[np.ndarray]:
            found = request.infer([batch])
            return [found[i] for i in outputs]

        return run
