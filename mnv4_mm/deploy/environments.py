"""Additional Python environments, for packages whose requirements conflict with those of the main environment."""

import os
from pathlib import Path

from mnv4_mm.config.index import REPOSITORY


def python_of(variable: str, folder: str) -> Path:
    """Return the path of the Python interpreter of an additional environment.

    Args:
        variable: Name of the environment variable that overrides the path.
        folder: Folder of the environment, relative to the current folder or else to the checkout. Used if the variable
            is not set.

    Returns:
        The value of the variable, which may be a relative path, or an absolute path. The file may not exist. The path
        may be a symbolic link, which must not be resolved, because Python finds its environment by the location of the
        link.
    """
    if python := os.environ.get(variable):
        return Path(python)
    paths = [parent / folder / 'bin' / 'python' for parent in (Path.cwd(), REPOSITORY)]
    return next((path for path in paths if path.is_file()), paths[0])
