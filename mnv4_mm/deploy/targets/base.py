"""What every runtime does behind the same interface. A runtime is a subclass in a file of its own."""

import contextlib
import importlib.metadata
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Kind, Meta, Precision
from mnv4_mm.runtime.predictor import Session

if TYPE_CHECKING:  # converting needs torch, running does not
    from mnv4_mm.deploy.graph import Graph


class Target(ABC):
    """A runtime.

    Attributes:
        name: As ``--to`` has it.
        suffix: Of the file to load.
        runtime: Modules that running needs.
        converter: Modules that converting needs besides.
        install: Command that brings them.
        kinds: What its files can give; the first that fits a task is the default.
        precisions: What it can be converted to.
        dynamic: Whether its files can take any size.
        distributions: What is installed, whose versions a file names.
        layout: Of the pixels that its files take.
        dtype: Of the pixels.
    """

    name: str
    suffix: str
    runtime: tuple[str, ...]
    converter: tuple[str, ...] = ()
    install: str
    kinds: tuple[Kind, ...]
    precisions: tuple[Precision, ...]
    dynamic: bool = False
    distributions: tuple[str, ...]
    layout: Literal['NHWC', 'NCHW'] = 'NHWC'
    dtype: Literal['uint8', 'float32'] = 'uint8'

    def missing(self, convert: bool = False) -> list[str]:
        """Modules that are not installed here."""
        needed = self.runtime + (self.converter if convert else ())
        return [name for name in needed if name not in sys.modules and importlib.util.find_spec(name) is None]

    def absent(self, convert: bool = False) -> str | None:
        """What is missing here, and the command that installs it; None if nothing is."""
        missing = self.missing(convert)
        return f'{self.name} is not installed here ({", ".join(missing)}): {self.install}' if missing else None

    def versions(self) -> dict[str, str]:
        """Of ``distributions``, as a file names them, whatever brought their modules (``onnxruntime-gpu``)."""
        brought = importlib.metadata.packages_distributions()
        found = {}
        for name in self.distributions:
            for distribution in dict.fromkeys((name, *brought.get(name.replace('-', '_'), ()))):
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    found[distribution] = importlib.metadata.version(distribution)
                    break
        return found

    def cannot_run(self) -> str | None:
        """Why its files cannot be run on this machine, whatever is installed; None if they can."""
        return None

    def inspect(self, path: Path, meta: Meta) -> str:
        """Where its files cannot be run: what a look into one says.

        Raises:
            UserError: it does not hold what its JSON says.
        """
        return 'nothing was looked at'

    @abstractmethod
    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        """Writes a graph as a file of this runtime.

        Args:
            graph: What is to be in it.
            path: The file to load later, in an empty folder.
            precision: One of ``precisions``.
            calibration: For int8: inputs as ``graph.meta.input`` says, of real pictures.

        Returns:
            All files or folders that were written.
        """

    @abstractmethod
    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        """Loads a file.

        Args:
            path: The file.
            meta: What it says of itself.
            threads: How many to use; the runtime's own choice if left out.

        Raises:
            UserError: the runtime cannot load it.
        """


def unloadable(path: Path, error: Exception) -> UserError:
    """What to say where a runtime refuses a file."""
    return UserError(f'{path} cannot be loaded: {" ".join(str(error).split())[:300]}')
