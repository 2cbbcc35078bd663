"""The interface of a converter. Each converter is a subclass of ``Target`` in a module of its own."""

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
        name: Name of the target in ``--to``, and key of its runtime in ``RUNTIMES``.
        converter: Python modules that conversion needs, besides those of the runtime.
        kinds: Kinds of outputs that the files can have; the first one that fits the task is the default.
        precisions: Precisions that the files can have.
        dynamic: True if the files can take inputs of any height and width that are multiples of 32.
        calibrates_again: True if trained int8 scales cannot be passed to the converter. For a net that has been
            fine-tuned for int8, the converter then determines new scales from calibration images.
        distributions: Packages whose versions are written into the metadata of a file, see ``versions``.
        layout: Layout of the input of the files; always NCHW if the caller normalises the input (``Input.normalise``).
        dtype: Data type of the input of the files; always float32 if the caller normalises the input.
        runs_elsewhere: True if the files are made for a runtime outside Python, such as a browser. On this machine they
            run in another runtime, whose latency says nothing about theirs.
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
        """Return a message that says what is not installed and how to install it; None if nothing is missing.

        Args:
            convert: Check what conversion needs, too. If False, only the modules that run a file are checked.
        """
        if not convert:
            return self.runtime.absent()
        return missing_message(self.name, self.runtime.modules + self.converter, f'export,{self.name}')

    def versions(self) -> dict[str, str]:
        """Return the versions of the installed packages of ``distributions``.

        If a package is not installed, but another one provides the same module (``onnxruntime-gpu`` instead of
        ``onnxruntime``), the version of the other one is returned under its own name.

        Returns:
            Versions by name of the package. Packages that are not installed are left out.

        Raises:
            UserError: The converter is in an environment of its own (LiteRT), and its packages are not installed there.
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
        """Return why files of this target cannot be run on this operating system; None if they can."""
        return self.runtime.cannot_run()

    def inspect(self, path: Path, meta: Meta) -> str:
        """Check the content of a file that cannot be run on this operating system, and describe the content.

        Args:
            path: The exported file.
            meta: Metadata of the file.

        Returns:
            The description, for the report of a comparison. Without an implementation for the target, it says that the
            content was not inspected.

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
            path: The file to write (for ``web``, the folder), in an empty folder. Other files that the format needs are
                written beside it.
            precision: One of ``precisions``.
            calibration: For int8: inputs made of real images, one image each, as ``graph.meta.input`` describes them.

        Returns:
            All files or folders that were written.

        Raises:
            UserError: The converter failed.
        """
