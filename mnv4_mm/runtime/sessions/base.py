"""The interface of a runtime: load an exported file, or tell which package is missing."""

import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Meta

# An input batch -> the outputs, in the order of ``meta.OUTPUTS``.
Session = Callable[[np.ndarray], list[np.ndarray]]


class Runtime(ABC):
    """A runtime for exported files.

    Attributes:
        name: Name of the runtime, as in ``Meta.target``. Also the extra of this package that installs the runtime,
            except for ``web``.
        suffix: Suffix of the file to load, or of the folder for ``web``.
        modules: Python modules that are needed to run a file.
    """

    name: str
    suffix: str
    modules: tuple[str, ...]

    def absent(self) -> str | None:
        """Return which modules are missing and the command that installs them; None if all are installed."""
        return missing_message(self.name, self.modules, self.name)

    def cannot_run(self) -> str | None:
        """Return why files cannot be run on this operating system; None if they can."""
        return None

    @abstractmethod
    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        """Load an exported file.

        Args:
            path: The file.
            meta: Metadata of the file.
            threads: Number of threads. None for the runtime's default, or for all cores if the default is one thread.
                Core ML ignores the number.

        Returns:
            The function that runs the file, see ``Session``.

        Raises:
            UserError: The runtime cannot load the file, or cannot run files on this operating system.
        """


def missing_modules(modules: Iterable[str]) -> list[str]:
    """Return the modules that are not installed."""
    return [name for name in modules if name not in sys.modules and importlib.util.find_spec(name) is None]


def missing_message(name: str, modules: Iterable[str], extras: str) -> str | None:
    """Return which modules are missing and how to install them; None if all are installed.

    Args:
        name: Name of the runtime.
        modules: Modules that the runtime needs.
        extras: Extras of this package that install them.
    """
    missing = missing_modules(modules)
    if not missing:
        return None
    return f'{name} is not installed here ({", ".join(missing)}): pip install "mnv4_mm[{extras}]"'


def unloadable(path: Path, error: Exception) -> UserError:
    """Return the error for a file that its runtime refuses."""
    return UserError(f'{path} cannot be loaded: {" ".join(str(error).split())[:300]}')
