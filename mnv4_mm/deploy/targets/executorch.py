"""ExecuTorch: one .pte for its XNNPACK backend, for phones' CPUs."""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.targets.base import Target, unloadable
from mnv4_mm.runtime.meta import META_KEY, Meta, Precision
from mnv4_mm.runtime.predictor import Session

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class ExecuTorch(Target):
    name = 'executorch'
    suffix = '.pte'
    runtime = ('executorch',)
    install = "pip install -e '.[executorch]'"
    kinds = ('raw', 'logits')
    precisions = ('fp32',)
    distributions = ('executorch',)
    _pool_is_set = False

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        # It tells of a change in torch that only executorch can follow.
        logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # of its own code, about Python's and torch's
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(
                graph.program(),
                partitioner=[XnnpackPartitioner()],
                # A method that returns a text: the format has no other room for one.
                constant_methods={META_KEY: graph.meta.to_json()},
            )
            path.write_bytes(edge.to_executorch().buffer)
        return [path]

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        import torch

        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # its API is experimental
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime

                # One pool for all that the process loads; it is told of on the console, so not without need.
                if threads or self._pool_is_set:
                    portable_lib._unsafe_reset_threadpool(threads or os.cpu_count() or 1)
                    self._pool_is_set = True
                method = Runtime.get().load_program(path).load_method('forward')
        # ExecuTorch raises RuntimeError and others, whatever is wrong.
        except Exception as error:
            raise unloadable(path, error) from error
        return lambda batch: [value.numpy() for value in method.execute([torch.from_numpy(batch)])]
