"""Names of the shipped configs and their files, and the folders that data paths of configs are relative to.

Imports nothing heavy.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from mnv4_mm.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
# The repository, if the package is imported from a checkout; None if it is installed from a wheel.
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / 'configs' / '_base_').is_dir() else None
# A wheel has the configs inside of the package.
CONFIGS = (CHECKOUT or PACKAGE) / 'configs'
REPOSITORY = CHECKOUT or PACKAGE


def config_index() -> dict[str, Path]:
    """Return the shipped training configs, name (file stem) -> path, without partial and deploy configs."""
    return {path.stem: path for path in sorted(CONFIGS.glob('*.py'))}


def find_config(name: str | Path) -> Path:
    """Return the file of a config.

    Args:
        name: Path of a file, or name of a shipped config.

    Raises:
        UserError: There is no such config (similar names are listed), or the file is not a Python file.
    """
    path = Path(name)
    if not path.is_file():
        index = config_index()
        stem = path.stem if path.suffix == '.py' else path.name
        if stem not in index:
            raise UserError(f'no config {name}: neither a file nor one of the shipped names{near_names(stem, index)}')
        path = index[stem]
    if path.suffix != '.py':
        raise UserError(f'{path} is not a config: expected a .py file')
    return path


def find_data(path: Path) -> Path:
    """Resolve a data path of a config.

    Returns:
        The path in the repository checkout if ``path`` exists there, but not relative to the current folder. Otherwise
        ``path`` itself, which may not exist.
    """
    if not path.exists() and CHECKOUT is not None and (CHECKOUT / path).exists():
        return CHECKOUT / path
    return path


def near_names(word: str, names: Iterable[str]) -> str:
    """Return the end of an error message that suggests names.

    Args:
        word: The mistyped name.
        names: The valid names.

    Returns:
        Up to three names that are similar to ``word``, or all names if none is similar, with ``; `` in front.
    """
    names = list(names)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    return f'; near: {", ".join(near)}' if near else f'; there are {", ".join(sorted(names))}'
