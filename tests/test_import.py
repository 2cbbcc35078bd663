"""Importing the package: light, and everything is registered whatever is imported first."""

import json
import os
import subprocess
import sys

import pytest

import mnv4_mm

HEAVY = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg')
# A finder that behaves as if packages were not installed.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Block())
"""
# Each is executed where neither mmengine nor mnv4_mm is imported yet.
ORDERS = {
    'mmengine': 'import mnv4_mm, mmengine',
    'mmcv': 'import mnv4_mm, mmcv',
    'a submodule of mmdet': 'import mnv4_mm; from mmdet.apis import init_detector',
    'a submodule of mmseg': 'import mnv4_mm; from mmseg.apis import init_model',
    'mmengine first': 'import mmengine, mnv4_mm',
    'models first': 'import mnv4_mm.models',
    'custom_imports': """
import mnv4_mm
from mmengine.config import Config
Config.fromfile({config!r})
""",
}
CHECK = """
import json, os, sys, traceback
import torch, torchvision, scipy, cv2, matplotlib.pyplot, pycocotools.mask  # OpenMMLab's slow imports, once
assert not {'mmengine', 'mnv4_mm'} & set(sys.modules)
for order, code in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child:
        print(order, os.waitpid(child, 0)[1], flush=True)
        continue
    try:
        exec(code, {})
        from mmengine import registry
        for kind, name in (
            ('MODELS', 'MobileNetV4'), ('MODELS', 'SSDLiteHead'), ('DATASETS', 'CachedCocoDataset'),
            ('TRANSFORMS', 'SSDAugmentation'), ('HOOKS', 'CurvesHook'), ('METRICS', 'FastCocoMetric'),
            ('RUNNERS', 'SafeRunner'), ('OPTIM_WRAPPERS', 'Bf16OptimWrapper'),
        ):
            assert name in getattr(registry, kind).module_dict, name
        assert not [finder for finder in sys.meta_path if 'mnv4_mm' in type(finder).__module__]
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""


def fresh(code, *arguments):
    """Run code in a new interpreter and return its output."""
    command = [sys.executable, '-W', 'ignore', '-c', code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize(
    'module', ['mnv4_mm', 'mnv4_mm.cli', 'mnv4_mm.config.check', 'mnv4_mm.deploy.arguments', 'mnv4_mm.bench.parts']
)
def test_light_modules_import_neither_torch_nor_openmmlab(module):
    loaded = fresh(f'import sys, {module}; print(*sys.modules)').stdout.split()
    assert module in loaded
    assert not set(HEAVY) & set(loaded)
    if module in ('mnv4_mm', 'mnv4_mm.cli'):
        assert not {'numpy', 'cv2', 'PIL', 'rich'} & set(loaded)


@pytest.fixture(scope='module')
def orders(repository):
    config = str(repository / 'configs/mnv4_ssdlite_coco-mini.py')
    codes = {order: code.replace('{config!r}', repr(config)) for order, code in ORDERS.items()}
    result = fresh(CHECK, json.dumps(codes))
    return dict(line.rsplit(' ', 1) for line in result.stdout.splitlines() if line.rsplit(' ', 1)[0] in codes), result


@pytest.mark.parametrize('order', ORDERS)
def test_everything_is_registered_whatever_is_imported_first(orders, order):
    codes, result = orders
    assert codes[order] == '0', result.stderr


def test_nothing_is_registered_and_nothing_fails_without_openmmlab():
    fresh(BLOCK.format(blocked=HEAVY) + 'import mnv4_mm, mnv4_mm.cli; assert mnv4_mm.__version__')


@pytest.mark.parametrize('failure', ['ModuleNotFoundError("No module named mmdet")', 'AssertionError("MMCV==2.2")'])
def test_a_broken_openmmlab_can_be_imported_and_is_reported(failure):
    code = f"""
import sys
class Break:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmdet':
            raise {failure}
sys.meta_path.insert(0, Break())
import mnv4_mm, mmengine
assert not [finder for finder in sys.meta_path if 'mnv4_mm' in type(finder).__module__]
"""
    result = fresh(code)
    assert f'not registered with OpenMMLab ({failure.split("(")[0]}' in result.stderr


def test_the_runtime_needs_numpy_and_opencv_only():
    fresh(BLOCK.format(blocked=(*HEAVY, 'PIL', 'rich')) + 'import mnv4_mm.runtime, mnv4_mm.runtime.predictor')


def test_the_functions_of_the_package_are_those_of_its_modules():
    from mnv4_mm.apis.evaluate import evaluate_files
    from mnv4_mm.apis.infer import infer
    from mnv4_mm.deploy.compare import compare
    from mnv4_mm.deploy.export import export
    from mnv4_mm.deploy.qat import train

    assert mnv4_mm.train is train
    assert mnv4_mm.evaluate is evaluate_files
    assert mnv4_mm.infer is infer
    assert mnv4_mm.compare is compare
    assert mnv4_mm.export is export
    assert callable(mnv4_mm.load)
    assert set(mnv4_mm.__all__) <= set(dir(mnv4_mm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mnv4_mm.nothing
