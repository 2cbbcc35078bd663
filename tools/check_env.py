"""Check an environment: versions, what works (by using it), and the command that repairs what does not.

Imports nothing of the project, which may be what is broken. Exit code 1 if something needs repair. Packages for
training may be absent altogether: the environment then runs exported files. ``mnv4 env`` runs this script.
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PIP = f'{sys.executable} -m pip'
IN_CLONE = (Path(__file__).resolve().parent.parent / 'requirements').is_dir()


def extra(names: str, clone: str = '') -> str:
    """Return the command that installs extras of the package.

    Args:
        names: Extras, comma-separated.
        clone: Command to use in a clone of the repository, if it is another one.
    """
    if IN_CLONE:
        return clone or f"{PIP} install -e '.[{names}]'"
    return f"{PIP} install 'mnv4_mm[{names}]'"


# mmcv compiles its operators against the installed torch only without build isolation.
INSTALL = (
    f'{sys.executable} tools/install.py --here'
    if IN_CLONE
    else f"{PIP} install --no-build-isolation 'mnv4_mm[train,onedl]', or `make env` in a clone of the repository"
)
TRAINING_INSTALL = INSTALL if IN_CLONE else f'{extra("train")}, then {INSTALL}'
REBUILD_MMCV = (
    f'{PIP} cache remove "*mmcv" && {PIP} uninstall -y onedl-mmcv mmcv && {INSTALL} '
    '(pip caches a wheel without knowing how it was built: without operators, or against another torch)'
)
ONE_OPENCV = f'{PIP} uninstall -y opencv-python-headless && {PIP} install --force-reinstall --no-deps ' + (
    '-c requirements/runtime.txt opencv-python' if IN_CLONE else "'opencv-python<5'"
)
PINNED_TORCH = (
    f'{PIP} install {"-r requirements/torch.txt" if IN_CLONE else "--upgrade torch torchvision"}, then rebuild mmcv: '
    f'{REBUILD_MMCV}'
)
RUNTIME = f'{PIP} install -r requirements/runtime.txt'
DISTRIBUTIONS = (
    ('torch',), ('torchvision',), ('numpy',), ('opencv-python', 'opencv-python-headless'),
    ('onedl-mmengine', 'mmengine'), ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    ('onedl-mmdetection', 'mmdet'), ('onedl-mmsegmentation', 'mmsegmentation'),
    ('faster-coco-eval',), ('pycocotools',), ('timm',), ('onnx',), ('onnxruntime', 'onnxruntime-gpu'),
    ('onnxscript',), ('openvino',), ('ncnn',), ('pnnx',), ('coremltools',), ('executorch',), ('torchao',),
    ('ai-edge-litert',), ('mmdeploy',), ('mmdeploy-runtime',), ('mnv4_mm',),
)  # fmt: skip


class Finding(NamedTuple):
    """A problem and the command that repairs it."""

    problem: str
    repair: str


def version(name: str) -> tuple[int, ...] | None:
    """Return the first three numbers of an installed distribution's version, or None if it is not installed."""
    try:
        text = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in re.findall(r'\d+', text.partition('+')[0])[:3])


def bad_pairs(version: Callable[[str], tuple[int, ...] | None]) -> list[Finding]:
    """Find versions that do not work together.

    Args:
        version: Returns the version of a distribution, or None if it is not installed.
    """
    findings = []

    def pair(is_bad: object, problem: str, repair: str) -> None:
        if is_bad:
            findings.append(Finding(problem, repair))

    torch, vision = version('torch'), version('torchvision')
    pair(
        torch and vision and torch[0] == 2 and (vision[0], vision[1]) != (0, torch[1] + 15),
        f'torch {_text(torch)} with torchvision {_text(vision)}: a torchvision is made for one torch',
        PINNED_TORCH,
    )
    pair(
        torch and torch[:2] == (2, 13),
        'torch 2.13 for the CPU: torchvision, and so timm, does not import ("torchvision::nms does not exist")',
        PINNED_TORCH,
    )
    for fork, upstream in (
        ('onedl-mmengine', 'mmengine'),
        ('onedl-mmcv', 'mmcv'),
        ('onedl-mmdetection', 'mmdet'),
        ('onedl-mmsegmentation', 'mmsegmentation'),
    ):
        pair(
            version(fork) and version(upstream),
            f'{fork} and {upstream} are both installed and write into the same folder',
            f'{PIP} uninstall -y {fork} {upstream} && {INSTALL}',
        )
    pair(
        version('opencv-python') and version('opencv-python-headless'),
        'opencv-python and opencv-python-headless are both installed and write into the same folder (mmdet depends on '
        'imaug, which asks for both)',
        ONE_OPENCV,
    )
    mmcv, mmdet, numpy = version('mmcv'), version('mmdet'), version('numpy')
    pair(
        mmcv and mmdet and mmcv >= (2, 2, 0) and mmdet <= (3, 3, 0),
        f'mmcv {_text(mmcv)} with mmdet {_text(mmdet)}, which asserts mmcv < 2.2 (open-mmlab/mmdetection#11763)',
        f'{PIP} install --no-build-isolation mmcv==2.1.0, or the tested set: {INSTALL}',
    )
    pair(version('mmcv-lite'), 'mmcv-lite has no operators', f'{PIP} uninstall -y mmcv-lite && {INSTALL}')
    pair(
        version('mmdeploy-runtime') and numpy and numpy >= (2, 0, 0),
        f'mmdeploy-runtime with numpy {_text(numpy)}: it runs and gives every detection the same label',
        'a separate environment with pip install mmdeploy-runtime==1.3.1 numpy==1.26.4',
    )
    setuptools = version('setuptools')
    pair(
        mmcv and not version('onedl-mmcv') and setuptools and setuptools >= (82, 0, 0),
        f'setuptools {_text(setuptools)} has no pkg_resources, which upstream mmcv needs (open-mmlab/mmcv#3325)',
        f'{PIP} install "setuptools<81"',
    )
    return findings


def _text(numbers: tuple[int, ...] | None) -> str:
    return '.'.join(map(str, numbers or ()))


def use_torchvision() -> None:
    import torch
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def use_mmcv_ops() -> None:
    import torch
    from mmcv.ops import nms

    # A wheel built on a machine without a GPU has no operators for one (open-mmlab/mmcv#2968).
    for device in ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu',):
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), torch.ones(1, device=device), 0.5)


def use_mmdet() -> None:
    importlib.import_module('mmdet.models')


def use_mmseg() -> None:
    importlib.import_module('mmseg.models')


def use_pycocotools() -> None:
    import numpy
    from pycocotools import mask

    mask.encode(numpy.asfortranarray(numpy.ones((2, 2), numpy.uint8)))


def use_opencv() -> None:
    import cv2
    import numpy

    cv2.imdecode(cv2.imencode('.jpg', numpy.zeros((8, 8, 3), numpy.uint8))[1], cv2.IMREAD_COLOR)


# y = Relu(x), float32 of shape (1,), as ONNX Runtime is also installed without onnx. Made by onnx 1.23 (ir_version 8,
# opset 17): helper.make_model(helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'test', ...)).
RELU = (
    b'\x08\x08:6\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x04testZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b'b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11'
)


def use_onnxruntime() -> None:
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(RELU, providers=['CPUExecutionProvider'])
    (result,) = session.run(None, {'x': numpy.full(1, -1, numpy.float32)})
    if result != [0]:
        raise RuntimeError(f'Relu(-1) is {result}')


def use_onnx_converter() -> None:
    importlib.import_module('onnxscript')


def use_mmdeploy() -> None:
    importlib.import_module('aenum')  # which it imports only when it is used
    importlib.import_module('mmdeploy.apis')


def use_openvino() -> None:
    # Suppress openvino-telemetry, which would report this import.
    sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
    importlib.import_module('openvino').Core()


def use_ncnn() -> None:
    importlib.import_module('ncnn').Net()


def use_pnnx() -> None:
    importlib.import_module('pnnx')


def use_coremltools() -> None:
    for name in ('coremltools', 'torch.utils._pytree'):  # the latter warns about torchao's types
        logging.getLogger(name).setLevel(logging.ERROR)
    importlib.import_module('coremltools')


def use_executorch() -> None:
    logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)
    importlib.import_module('executorch.runtime').Runtime.get()


def use_litert() -> None:
    importlib.import_module('ai_edge_litert.interpreter')


def use_litert_converter() -> None:
    root = Path(__file__).resolve().parent.parent
    python = Path(os.environ.get('MNV4_LITERT_PYTHON') or root / '.venv-litert/bin/python')
    if not python.is_file():
        raise ModuleNotFoundError(f'no {python}')
    command = [str(python), '-I', '-c', 'import litert_torch, ai_edge_quantizer.quantizer']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ['no reason given'])[-1])


def use_mnv4_mm() -> None:
    importlib.import_module('mnv4_mm')


USES = (
    ('torchvision operators', use_torchvision, PINNED_TORCH),
    ('mmcv operators', use_mmcv_ops, REBUILD_MMCV),
    ('mmdet', use_mmdet, INSTALL),
    ('mmseg', use_mmseg, INSTALL),
    ('pycocotools', use_pycocotools, f'{PIP} install --force-reinstall --no-deps pycocotools'),
    ('OpenCV', use_opencv, RUNTIME if IN_CLONE else f"{PIP} install --force-reinstall --no-deps 'opencv-python<5'"),
    ('ONNX Runtime', use_onnxruntime, extra('onnx', RUNTIME)),
    ('ONNX conversion', use_onnx_converter, extra('export')),
    ('OpenVINO', use_openvino, extra('openvino')),
    ('ncnn', use_ncnn, extra('ncnn')),
    ('ncnn conversion', use_pnnx, extra('export')),
    ('Core ML conversion', use_coremltools, extra('coreml')),
    ('ExecuTorch', use_executorch, extra('executorch')),
    (
        'mmdeploy',
        use_mmdeploy,
        f'{PIP} install --no-deps {"-r requirements/mmdeploy.txt" if IN_CLONE else "mmdeploy aenum"}',
    ),
    ('LiteRT', use_litert, extra('litert')),
    ('LiteRT conversion', use_litert_converter, 'make litert' if IN_CLONE else '`make litert` in a clone'),
    (
        'mnv4_mm',
        use_mnv4_mm,
        f'{PIP} install --no-deps --no-build-isolation -e .'
        if IN_CLONE
        else f'{PIP} install --force-reinstall --no-deps mnv4_mm',
    ),
)
TRAINING = ('torchvision operators', 'mmcv operators', 'mmdet', 'mmseg', 'pycocotools')
TRAINING_MODULES = ('torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg')
OPTIONAL = (
    'ONNX Runtime', 'ONNX conversion', 'OpenVINO', 'ncnn', 'ncnn conversion',
    'Core ML conversion', 'ExecuTorch', 'mmdeploy', 'LiteRT', 'LiteRT conversion',
)  # fmt: skip


def has_training() -> bool:
    """Return False if neither torchvision nor OpenMMLab is installed: an installation that only runs exported files."""
    return any(importlib.util.find_spec(name) is not None for name in TRAINING_MODULES)


def main() -> int:
    warnings.simplefilter('ignore')
    print(f'Python {platform.python_version()} at {sys.executable}')
    for names in DISTRIBUTIONS:
        present = [f'{name} {importlib.metadata.version(name)}' for name in names if version(name)]
        if present:
            print('  ' + ', '.join(present))
    findings = bad_pairs(version)
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        findings.append(
            Finding(f'Python {platform.python_version()} is outside 3.10 to 3.12', 'make PYTHON=python3.11')
        )
    is_training = has_training()
    if not is_training:
        print(f'  not installed: training (mnv4_mm[train] and OpenMMLab; {TRAINING_INSTALL})')
    for name, use, repair in USES:
        if name in TRAINING and not is_training:
            continue
        try:
            use()
            print(f'  works: {name}')
        # A broken installation can raise anything; each failure is reported with the command that repairs it.
        except Exception as error:
            if name in OPTIONAL and isinstance(error, ModuleNotFoundError):
                print(f'  not installed: {name} (optional; {repair})')
                continue
            print(f'  FAILS: {name}')
            reason = (str(error).strip().splitlines() or [''])[0]
            findings.append(Finding(f'{name}: {type(error).__name__}: {reason}', repair))
    for finding in findings:
        print(f'PROBLEM {finding.problem}\n  repair: {finding.repair}')
    ready = 'Ready.' if is_training else 'Ready to run exported files.'
    print(f'{len(findings)} to repair.' if findings else ready)
    return 1 if findings else 0


if __name__ == '__main__':
    sys.exit(main())
