"""Parts of the benchmark and the packages that each needs. Imports nothing heavy."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mnv4_mm.config.index import CHECKOUT
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_output_file

# Name -> modules that are compared with ours or needed to measure, besides those of training.
PARTS: dict[str, tuple[str, ...]] = {
    'augmentation': (),
    'training': (),
    'step': (),
    'evaluation': ('pycocotools',),
    'startup': (),
    'backbone': ('timm',),
    'exported': ('onnx', 'onnxscript', 'onnxruntime', 'ultralytics'),
}


def check_bench(out: Path, only: Sequence[str] = ()) -> None:
    """Check the arguments of ``bench``, and that the packages it needs are installed.

    Raises:
        UserError: A part is unknown, a package is missing, ``out`` cannot be written, or there is no checkout.
    """
    if unknown := [name for name in only if name not in PARTS]:
        raise UserError(f'no part {unknown[0]!r} to measure; there are {", ".join(PARTS)}')
    for name in only or PARTS:
        if missing := [module for module in PARTS[name] if importlib.util.find_spec(module) is None]:
            others = [part for part in PARTS if part != name]
            raise UserError(
                f'the part {name} needs {", ".join(missing)}: pip install --no-deps -r requirements/bench.txt -r '
                f'requirements/deploy.txt, or measure others by --only {" ".join(others)}'
            )
    check_output_file('--out', out)
    if CHECKOUT is None:
        raise UserError('the benchmark runs in a clone of the repository: it uses the images of data/mini')
