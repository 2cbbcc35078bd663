"""ExecuTorch: a ``.pte`` for its XNNPACK backend, for the CPUs of phones."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.sensitivity import LayerSensitivity, write_layers
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import to_int8
from mnv4_mm.runtime.meta import META_KEY, Precision

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class ExecuTorch(Target):
    name = 'executorch'
    converter = ('torchao',)
    kinds = ('raw', 'logits')
    precisions = ('fp32', 'int8')
    distributions = ('executorch', 'torchao')

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        layers: list[LayerSensitivity] = []
        program = graph.program()
        # torch logs a deprecation that concerns the code of ExecuTorch and of torchao only.
        logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # about calls in its own code
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            if precision == 'int8':
                from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e

                quantized = to_int8(graph, calibration)
                layers = quantized.layers
                program = quantize_pt2e(program, calibration, quantized.sensitive)
            edge = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                # A method that returns a string: the format has no other room for text.
                constant_methods={META_KEY: graph.meta.to_json()},
            )
            path.write_bytes(edge.to_executorch().buffer)
        return [path, *write_layers(path, layers)]
