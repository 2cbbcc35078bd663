"""A config with all its values in one file."""

import ast
from pathlib import Path

from mnv4_mm.config.load import READ_KEYS, load_config
from mnv4_mm.version import __version__

# Order of the file: what a user is most likely to edit comes first.
_ORDER = (
    'model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator',
    'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
)  # fmt: skip


def standalone(path: Path) -> str:
    """Return the text of a config without ``_base_``.

    Values that other values were computed from (``batch_size``, ``base_lr``, ...) are left out: changing them in the
    copy would have no effect.

    Args:
        path: Config file.

    Raises:
        UserError: The config cannot be read.
    """
    cfg = load_config(path)
    doc = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')), clean=False) or path.stem
    names = [name for name in _ORDER if name in cfg] + sorted(set(cfg) & READ_KEYS - set(_ORDER))
    parts = [f'"""{doc}"""\n\n# A copy of {path.stem} of mnv4_mm {__version__}, with all values in one file.\n']
    for name in names:
        parts.append(type(cfg)({name: cfg[name]}).pretty_text)
    return '\n'.join(parts)
