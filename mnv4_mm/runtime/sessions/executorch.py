"""ExecuTorch programs. Their Python runtime takes and returns torch tensors, so it needs PyTorch itself."""

import os
import warnings
from pathlib import Path

from mnv4_mm.quiet import errors_only
from mnv4_mm.runtime.meta import Meta
from mnv4_mm.runtime.quiet import PYTREE, without_native_stderr
from mnv4_mm.runtime.sessions.base import Runtime, Session, unloadable


class ExecuTorchRuntime(Runtime):
    name = 'executorch'
    suffix = '.pte'
    modules = ('executorch', 'torch')
    _pool_was_set = False

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        import torch

        try:
            with errors_only(PYTREE), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # its API is experimental
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime as Programs

                # All programs of a process share one thread pool. It prints lines about Arm processors when it is made,
                # which setting it or loading the first program does.
                with without_native_stderr():
                    if threads or self._pool_was_set:
                        portable_lib._unsafe_reset_threadpool(threads or os.cpu_count() or 1)
                        self._pool_was_set = True
                    method = Programs.get().load_program(path).load_method('forward')
        # ExecuTorch raises RuntimeError and others.
        except Exception as error:
            raise unloadable(path, error) from error
        return lambda batch: [value.numpy() for value in method.execute([torch.from_numpy(batch)])]
