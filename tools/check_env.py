"""Check an environment: versions, what works (by using it), and the command that repairs what does not.

Imports nothing of the project, which may be what is broken. Exit code 1 if something needs repair. ``mnv4 env`` runs
this script.
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
INSTALL = f'{sys.executable} tools/install.py --here'
REBUILD_MMCV = (
    f'{PIP} cache remove onedl_mmcv && {PIP} uninstall -y onedl-mmcv mmcv && {INSTALL} '
    '(pip caches a wheel without knowing how it was built: without operators, or against another torch)'
)
ONE_OPENCV = (
    f'{PIP} uninstall -y opencv-python-headless && {PIP} install --force-reinstall --no-deps '
    '-c requirements/runtime.txt opencv-python'
)
PINNED_TORCH = f'{PIP} install -r requirements/torch.txt, then rebuild mmcv: {REBUILD_MMCV}'
DISTRIBUTIONS = (
    ('torch',), ('torchvision',), ('numpy',), ('opencv-python', 'opencv-python-headless'),
    ('onedl-mmengine', 'mmengine'), ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    ('onedl-mmdetection', 'mmdet'), ('onedl-mmsegmentation', 'mmsegmentation'),
    ('faster-coco-eval',), ('pycocotools',), ('timm',), ('onnx',), ('onnxruntime', 'onnxruntime-gpu'),
    ('onnxscript',), ('openvino',), ('nncf',), ('ncnn',), ('pnnx',), ('coremltools',), ('executorch',), ('torchao',),
    ('ai-edge-litert',), ('mmdeploy',), ('mmdeploy-runtime',), ('mnv4_mm',),
)  # fmt: skip


class Finding(NamedTuple):
    """A problem and the command that repairs it."""

    problem: str
    repair: str


def version(name: str) -> tuple[int, ...] | None:
    """Return the version of an installed distribution as numbers, or None if it is not installed."""
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


def use_onnxruntime() -> None:
    import numpy
    import onnxruntime
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in 'xy']
    graph = helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'test', values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    session.run(None, {'x': numpy.ones(1, numpy.float32)})


def use_onnx_converter() -> None:
    importlib.import_module('onnxscript')


def use_mmdeploy() -> None:
    importlib.import_module('aenum')  # which it imports only when it is used
    importlib.import_module('mmdeploy.apis')


def use_openvino() -> None:
    # Suppress openvino-telemetry, which would report this import.
    sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
    importlib.import_module('openvino').Core()


def use_nncf() -> None:
    sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
    if importlib.util.find_spec('nncf') is None:
        raise ImportError('no nncf')


def use_ncnn() -> None:
    importlib.import_module('ncnn').Net()
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
        raise ImportError(f'no {python}')
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
    ('OpenCV', use_opencv, f'{PIP} install -r requirements/runtime.txt'),
    ('ONNX Runtime', use_onnxruntime, f'{PIP} install -r requirements/runtime.txt'),
    ('ONNX conversion', use_onnx_converter, f"{PIP} install -e '.[export]'"),
    ('OpenVINO', use_openvino, f"{PIP} install -e '.[openvino]'"),
    ('NNCF (int8 for OpenVINO)', use_nncf, f"{PIP} install -e '.[export]'"),
    ('ncnn', use_ncnn, f"{PIP} install -e '.[ncnn,export]'"),
    ('Core ML conversion', use_coremltools, f"{PIP} install -e '.[coreml]'"),
    ('ExecuTorch', use_executorch, f"{PIP} install -e '.[executorch]'"),
    ('mmdeploy', use_mmdeploy, f'{PIP} install --no-deps -r requirements/mmdeploy.txt'),
    ('LiteRT', use_litert, f"{PIP} install -e '.[litert]'"),
    ('LiteRT conversion', use_litert_converter, 'make litert'),
    ('mnv4_mm', use_mnv4_mm, f'{PIP} install --no-deps --no-build-isolation -e .'),
)

OPTIONAL = (
    'ONNX Runtime', 'ONNX conversion', 'OpenVINO', 'NNCF (int8 for OpenVINO)', 'ncnn', 'Core ML conversion',
    'ExecuTorch', 'mmdeploy', 'LiteRT', 'LiteRT conversion',
)  # fmt: skip


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
    for name, use, repair in USES:
        try:
            use()
            print(f'  works: {name}')
        # A broken installation can raise anything; each failure is reported with the command that repairs it.
        except Exception as error:
            if name in OPTIONAL and isinstance(error, ImportError):
                print(f'  not installed: {name} (only for export; {repair})')
                continue
            print(f'  FAILS: {name}')
            reason = (str(error).strip().splitlines() or [''])[0]
            findings.append(Finding(f'{name}: {type(error).__name__}: {reason}', repair))
    for finding in findings:
        print(f'PROBLEM {finding.problem}\n  repair: {finding.repair}')
    print('Ready.' if not findings else f'{len(findings)} to repair.')
    return 1 if findings else 0


if __name__ == '__main__':
    sys.exit(main())
