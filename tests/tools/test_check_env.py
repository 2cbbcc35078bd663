"""check_env names bad pairs and what repairs them."""

import importlib.util
import shutil

import pytest

GOOD = {
    'torch': (2, 14, 1),
    'torchvision': (0, 29, 1),
    'numpy': (2, 2, 6),
    'onedl-mmcv': (2, 3, 6),
    'onedl-mmdetection': (3, 5, 1),
}


@pytest.mark.parametrize(
    ('change', 'problem', 'repair'),
    [
        ({'torchvision': (0, 28, 0)}, 'a torchvision is made for one torch', 'requirements/torch.txt'),
        ({'torch': (2, 13, 0), 'torchvision': (0, 28, 0)}, 'torch 2.13', 'requirements/torch.txt'),
        ({'mmcv': (2, 1, 0)}, 'onedl-mmcv and mmcv are both installed', 'pip uninstall'),
        (
            {'onedl-mmcv': None, 'mmcv': (2, 2, 0), 'onedl-mmdetection': None, 'mmdet': (3, 3, 0)},
            '#11763',
            'mmcv==2.1.0',
        ),
        ({'mmdeploy-runtime': (1, 3, 1)}, 'the same label', 'numpy==1.26.4'),
        ({'onedl-mmcv': None, 'mmcv': (2, 1, 0), 'setuptools': (82, 0, 0)}, 'pkg_resources', 'setuptools<81'),
        ({'onedl-mmcv': None, 'mmcv-lite': (2, 1, 0)}, 'no operators', 'pip uninstall'),
        ({'opencv-python': (4, 12), 'opencv-python-headless': (4, 12)}, 'the same folder', '--force-reinstall'),
    ],
)
def test_versions_that_do_not_fit_are_found(load_tool, change, problem, repair):
    check_env = load_tool('check_env')
    versions = {**GOOD, **change}
    found = check_env.bad_pairs(versions.get)
    assert len(found) == 1
    assert problem in found[0].problem
    assert repair in found[0].repair


def test_the_tested_set_is_no_bad_pair(load_tool):
    assert load_tool('check_env').bad_pairs(GOOD.get) == []


def test_here_everything_works(run_tool):
    result = run_tool('check_env.py')
    assert result.returncode == 0, result.stdout
    for name in ('mmcv operators', 'torchvision operators', 'ONNX Runtime', 'mmdeploy', 'mnv4_mm'):
        assert f'works: {name}' in result.stdout


def test_missing_operators_name_pips_cache(load_tool, capsys, monkeypatch):
    check_env = load_tool('check_env')

    def broken():
        raise ModuleNotFoundError("No module named 'mmcv._ext'")

    uses = [(name, broken if name == 'mmcv operators' else use, repair) for name, use, repair in check_env.USES]
    monkeypatch.setattr(check_env, 'USES', uses)
    assert check_env.main() == 1
    out = capsys.readouterr().out
    assert "No module named 'mmcv._ext'" in out
    assert 'pip cache remove "*mmcv"' in out


def test_an_absent_mmdeploy_is_named_with_its_command(load_tool, capsys, monkeypatch):
    check_env = load_tool('check_env')

    def absent():
        raise ModuleNotFoundError("No module named 'mmdeploy'")

    uses = [(name, absent if name == 'mmdeploy' else lambda: None, repair) for name, _, repair in check_env.USES]
    monkeypatch.setattr(check_env, 'USES', uses)
    assert check_env.main() == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if 'not installed: mmdeploy' in line)
    assert 'install --no-deps -r requirements/mmdeploy.txt' in line


def test_onnx_runtime_is_tested_without_onnx(load_tool, monkeypatch):
    import onnx

    check_env = load_tool('check_env')
    model = onnx.load_model_from_string(check_env.RELU)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ['Relu']
    monkeypatch.setitem(check_env.sys.modules, 'onnx', None)
    check_env.use_onnxruntime()


@pytest.fixture
def outside(repository, tmp_path):
    """The script as a wheel has it, outside of a clone."""
    path = tmp_path / 'tools/check_env.py'
    path.parent.mkdir()
    shutil.copy(repository / 'tools/check_env.py', path)
    spec = importlib.util.spec_from_file_location('check_env_outside', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def absent():
    raise ModuleNotFoundError("No module named 'x'")


def test_an_installation_without_training_is_no_problem(outside, monkeypatch, capsys):
    present = ('OpenCV', 'ONNX Runtime', 'mnv4_mm')
    uses = [(name, (lambda: None) if name in present else absent, repair) for name, _, repair in outside.USES]
    monkeypatch.setattr(outside, 'USES', uses)
    monkeypatch.setattr(outside, 'TRAINING_MODULES', ('no_such_module',))
    monkeypatch.setattr(outside, 'bad_pairs', lambda version: [])
    assert outside.main() == 0
    out = capsys.readouterr().out
    assert 'not installed: training (mnv4_mm[train] and OpenMMLab' in out
    assert 'works: ONNX Runtime' in out
    assert 'not installed: OpenVINO (optional; ' in out
    assert "install 'mnv4_mm[openvino]'" in out
    assert 'FAILS' not in out
    assert out.endswith('Ready to run exported files.\n')


def test_training_that_is_there_in_part_needs_repair(outside, monkeypatch, capsys):
    uses = [(name, absent if name == 'mmseg' else (lambda: None), repair) for name, _, repair in outside.USES]
    monkeypatch.setattr(outside, 'USES', uses)
    monkeypatch.setattr(outside, 'bad_pairs', lambda version: [])
    assert outside.main() == 1
    assert 'FAILS: mmseg' in capsys.readouterr().out


def test_a_runtime_that_is_installed_and_broken_needs_repair(outside, monkeypatch, capsys):
    def broken():
        raise ImportError('libx.so.1: cannot open shared object file')

    uses = [(name, broken if name == 'OpenVINO' else (lambda: None), repair) for name, _, repair in outside.USES]
    monkeypatch.setattr(outside, 'USES', uses)
    monkeypatch.setattr(outside, 'bad_pairs', lambda version: [])
    assert outside.main() == 1
    assert 'FAILS: OpenVINO' in capsys.readouterr().out


def test_outside_of_a_clone_no_command_needs_one(outside, load_tool):
    repairs = [repair for _, _, repair in outside.USES]
    repairs += [item.repair for item in outside.bad_pairs(dict(GOOD, torchvision=(0, 28, 0)).get)]
    assert not [text for text in repairs if 'requirements/' in text or 'tools/' in text or '-e ' in text]
    assert any('requirements/' in repair for _, _, repair in load_tool('check_env').USES)
