"""Names of the shipped configs and where they are. Imports nothing heavy."""

import difflib
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / 'configs'


def config_index() -> dict[str, Path]:
    """Names of the shipped configs that train (file stem) and their paths: not the parts, nor mmdeploy's."""
    return {path.stem: path for path in sorted(CONFIGS.glob('*.py'))}


def near_names(word: str, known: Iterable[str]) -> str:
    """The names most like a mistyped one, or all of them, as the end of a sentence."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f'; near: {", ".join(near)}' if near else f'; there are {", ".join(sorted(known))}'
