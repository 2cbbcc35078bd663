"""Turn a config with ``_base_`` files into the source of a single config file."""

import ast
import keyword
import math
from pathlib import Path
from typing import Any

from mnv4_mm.config.load import load_config
from mnv4_mm.config.rules import READ_KEYS
from mnv4_mm.errors import UserError
from mnv4_mm.version import __version__

WIDTH = 120  # columns
# Order of the file: what a user is most likely to edit comes first.
_ORDER = (
    'model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator',
    'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
)  # fmt: skip


# The Runner does not read `input_size`, but `mnv4 complexity`, backbones of a fixed input size and static exports of
# mmdeploy do.
KEPT = READ_KEYS | {'input_size'}


def standalone(path: Path) -> str:
    """Return the Python source of a config with the values of its ``_base_`` files written out.

    Variables that are only used while the config file is read (``batch_size``, ``base_lr``, ...) are left out, because
    changing them in the copy would have no effect.

    Args:
        path: Config file.

    Raises:
        UserError: The config cannot be read, or has a value that cannot be written as a literal.
    """
    values = load_config(path).to_dict()
    doc = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')), clean=False) or path.stem
    lines = [
        f'"""{_escape(doc)}"""',
        '',
        f'# A copy of {path.stem} of mnv4_mm {__version__}, with all values in one file.',
        '',
    ]
    written: dict[str, Any] = {}
    for name in [*(name for name in _ORDER if name in values), *sorted(values.keys() & KEPT - set(_ORDER))]:
        value = values[name]
        same = [other for other in written if name.endswith(('loader', 'evaluator')) and written[other] == value]
        lines.append(f'{name} = {same[0] if same else _format(value, len(name) + 3)}')
        written[name] = value
    return '\n'.join(lines) + '\n'


def _escape(doc: str) -> str:
    """Escape a docstring where it would end early or change."""
    doc = doc.replace('\\', '\\\\')
    return doc.replace('"', '\\"') if '"""' in doc or doc.endswith('"') else doc


def _literal(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    text = repr(value)
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise UserError(f'the value {text} cannot be written to a file: only plain values can be copied') from error
    return text


def _format(value: Any, column: int, indent: int = 0) -> str:
    """Format a value as Python source: on one line if it fits, else one line for each item.

    Args:
        value: Dict, list, tuple or literal.
        column: Number of characters before it on its line.
        indent: Number of spaces that this line is indented by.
    """
    opening, closing, items = _items(value)
    if not opening:
        return _literal(value)
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    text = opening + ', '.join(prefix + _format(item, -(10**6)) for prefix, item in items) + comma + closing
    if column + len(text) < WIDTH:
        return text
    space = ' ' * (indent + 4)
    lines = [f'{space}{prefix}{_format(item, indent + 4 + len(prefix), indent + 4)},' for prefix, item in items]
    return '\n'.join([opening, *lines, ' ' * indent + closing])


def _items(value: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return the brackets of a container, and its items with the text in front of each."""
    if isinstance(value, dict):
        if all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value):
            return 'dict(', ')', [(f'{key}=', item) for key, item in value.items()]
        return '{', '}', [(f'{key!r}: ', item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return ('[', ']', [('', x) for x in value]) if isinstance(value, list) else ('(', ')', [('', x) for x in value])
    return '', '', []
