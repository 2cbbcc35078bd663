"""check_env names bad pairs and what repairs them."""

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
    assert 'pip cache remove onedl_mmcv' in out


def test_an_absent_mmdeploy_is_named_with_its_command(load_tool, capsys, monkeypatch):
    check_env = load_tool('check_env')

    def absent():
        raise ModuleNotFoundError("No module named 'mmdeploy'")

    uses = [(name, absent if name == 'mmdeploy' else lambda: None, repair) for name, _, repair in check_env.USES]
    monkeypatch.setattr(check_env, 'USES', uses)
    assert check_env.main() == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if 'not installed: mmdeploy' in line)
    assert 'install --no-deps -r requirements/mmdeploy.txt' in line
