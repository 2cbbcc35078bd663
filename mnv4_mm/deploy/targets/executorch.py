"""ExecuTorch: a ``.pte`` for its XNNPACK backend, for the CPUs of phones."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.layers_file import write_layers
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import float_program
from mnv4_mm.quiet import errors_only
from mnv4_mm.runtime.meta import META_KEY, Precision
from mnv4_mm.runtime.quiet import PYTREE

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
        if graph.has_integers:
            program, quantised = graph.program(), None
        else:
            program, quantised = float_program(graph, precision, calibration)
        with errors_only(PYTREE), warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # about calls in its own code
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e, trained_pt2e

            if graph.has_integers:
                program = trained_pt2e(program)
            elif quantised:
                program = quantize_pt2e(program, calibration, quantised.sensitive)
            edge = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                # A method that returns a string: the format has no other room for text.
                constant_methods={META_KEY: graph.meta.to_json()},
            )
            path.write_bytes(edge.to_executorch().buffer)
        return [path, *write_layers(path, quantised, graph.calibration)]
