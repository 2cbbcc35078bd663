"""ExecuTorch: a ``.pte`` for its XNNPACK backend, for the CPUs of phones."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.runtime.meta import META_KEY, Precision

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class ExecuTorch(Target):
    name = 'executorch'
    kinds = ('raw', 'logits')
    precisions = ('fp32',)
    distributions = ('executorch',)

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        # torch logs a deprecation that concerns the code of ExecuTorch only.
        logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # about calls in its own code
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(
                graph.program(),
                partitioner=[XnnpackPartitioner()],
                # A method that returns a string: the format has no other room for text.
                constant_methods={META_KEY: graph.meta.to_json()},
            )
            path.write_bytes(edge.to_executorch().buffer)
        return [path]
