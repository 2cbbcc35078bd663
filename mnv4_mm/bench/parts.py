"""Parts of the benchmark and the modules that each needs. Imports nothing heavy."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mnv4_mm.config.index import CHECKOUT
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_output_file

# Name -> modules that it needs besides those of training.
PARTS: dict[str, tuple[str, ...]] = {
    'augmentation': (),
    'training': (),
    'step': (),
    'distillation': (),
    'evaluation': ('pycocotools',),
    'startup': (),
    'checking': (),
    'backbone': ('timm',),
    'exported': ('onnx', 'onnxscript', 'onnxruntime', 'ultralytics'),
    'labelling': ('onnx', 'onnxscript', 'onnxruntime', 'pyarrow'),
    'gpu': (),
}
# Parts that are measured only if they are named.
ONLY_ON_REQUEST = ('gpu',)
INSTALL = {
    'pycocotools': 'pip install -r requirements/runtime.txt',
    'timm': 'pip install -r requirements/runtime.txt',
    'onnx': "pip install -e '.[export]'",
    'onnxscript': "pip install -e '.[export]'",
    'onnxruntime': "pip install -e '.[onnx]'",
    'pyarrow': "pip install -e '.[label]'",
    'ultralytics': 'pip install --no-deps -r requirements/bench.txt',
}


def check_bench(out: Path, only: Sequence[str] = ()) -> list[str]:
    """Check the arguments of ``bench``, and that the modules it needs are installed.

    Args:
        out: The JSON file to write.
        only: Names of ``PARTS``; all but ``ONLY_ON_REQUEST`` if empty.

    Returns:
        Names of the parts to measure.

    Raises:
        UserError: A part is unknown, a module is missing, ``out`` cannot be written, or the package does not run from a
            clone of the repository, whose images are needed.
    """
    if unknown := [name for name in only if name not in PARTS]:
        raise UserError(f'no part {unknown[0]!r} to measure; there are {", ".join(PARTS)}')
    names = list(dict.fromkeys(only or (name for name in PARTS if name not in ONLY_ON_REQUEST)))
    for name in names:
        if missing := [module for module in PARTS[name] if importlib.util.find_spec(module) is None]:
            commands = ' && '.join(dict.fromkeys(INSTALL[module] for module in missing))
            others = ' '.join(other for other in names if other != name)
            advice = f'; or leave it out: --only {others}' if others else ''
            raise UserError(f'part {name!r} needs {", ".join(missing)}, not installed here: {commands}{advice}')
    check_output_file('--out', out)
    if CHECKOUT is None:
        raise UserError('the benchmark runs in a clone of the repository: it uses the images of data/mini')
    return names
