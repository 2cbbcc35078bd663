"""The interface of a converter. A converter is a subclass in a module of its own."""

import contextlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mnv4_mm.runtime.meta import Kind, Meta, Precision
from mnv4_mm.runtime.sessions import RUNTIMES, Runtime
from mnv4_mm.runtime.sessions.base import missing_message

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class Target(ABC):
    """Conversion to the file format of a runtime.

    Attributes:
        name: As in ``--to``; also the key of its runtime in ``RUNTIMES``.
        converter: Modules that conversion needs besides those of the runtime.
        kinds: Kinds of outputs that its files can have; the first that fits the task is the default.
        precisions: Precisions that its files can have.
        dynamic: True if its files can take inputs of any height and width that are multiples of 32.
        calibrates_again: True if int8 scales cannot be passed to the converter: it determines those of a net that has
            been fine-tuned for int8 again, from images.
        distributions: Packages whose versions are written into the metadata of a file.
        layout: Layout of the pixels that its files take.
        dtype: Data type of the pixels.
        runs_elsewhere: True if its files run here in another runtime than on their device, so that latency here is not
            theirs.
    """

    name: str
    converter: tuple[str, ...] = ()
    kinds: tuple[Kind, ...]
    precisions: tuple[Precision, ...]
    dynamic: bool = False
    distributions: tuple[str, ...]
    calibrates_again: bool = False
    layout: Literal['NHWC', 'NCHW'] = 'NHWC'
    dtype: Literal['uint8', 'float32'] = 'uint8'
    runs_elsewhere: bool = False

    @property
    def runtime(self) -> Runtime:
        """The runtime that runs the files of this target."""
        return RUNTIMES[self.name]

    @property
    def suffix(self) -> str:
        """Suffix of the file to load."""
        return self.runtime.suffix

    def absent(self, convert: bool = False) -> str | None:
        """Return which modules are missing and the command that installs them; None if all are installed.

        Args:
            convert: Include the modules for conversion.
        """
        if not convert:
            return self.runtime.absent()
        return missing_message(self.name, self.runtime.modules + self.converter, f'export,{self.name}')

    def versions(self) -> dict[str, str]:
        """Return the versions of ``distributions``, or of packages with the same module (``onnxruntime-gpu``), by name.

        Packages that are not installed are left out.
        """
        providers = importlib.metadata.packages_distributions()
        versions = {}
        for name in self.distributions:
            for distribution in dict.fromkeys((name, *providers.get(name.replace('-', '_'), ()))):
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    versions[distribution] = importlib.metadata.version(distribution)
                    break
        return versions

    def cannot_run(self) -> str | None:
        """Return why its files cannot be run on this operating system; None if they can."""
        return self.runtime.cannot_run()

    def inspect(self, path: Path, meta: Meta) -> str:
        """Describe the content of a file that cannot be run here.

        Raises:
            UserError: The content does not fit the metadata.
        """
        return 'its content was not inspected'

    @abstractmethod
    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        """Write a graph as a file of this runtime.

        Args:
            graph: The model.
            path: The file to load later, in an empty folder.
            precision: One of ``precisions``.
            calibration: For int8: inputs made of real images, one image each, as ``graph.meta.input`` describes them.

        Returns:
            All files or folders that were written.

        Raises:
            UserError: The converter failed.
        """
