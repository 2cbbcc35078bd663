"""Environments beside the main one, with packages that need other versions of its packages."""

import os
from pathlib import Path

from mnv4_mm.config.index import REPOSITORY


def python_of(variable: str, folder: str) -> Path:
    """Return the Python of an environment.

    Args:
        variable: Environment variable that names this Python.
        folder: Folder of the environment without the variable, in the current folder or in the checkout.

    Returns:
        The path, absolute unless the variable has another one. The file may not exist. It is a link that must not be
        followed, because Python finds its environment by the place of the link.
    """
    if python := os.environ.get(variable):
        return Path(python)
    paths = [parent / folder / 'bin' / 'python' for parent in (Path.cwd(), REPOSITORY)]
    return next((path for path in paths if path.is_file()), paths[0])
