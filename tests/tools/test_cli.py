"""A user's mistake is one line on stderr and exit code 2, for every tool and every kind of argument."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mnv4_mm.errors import UserError

TRAIN = 'train.py'
MINI = 'mnv4_ssdlite_coco-mini'


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        (TRAIN, ['mnv4_ssdlight'], 'near: mnv4_ssdlite_coco'),
        (TRAIN, [MINI, '--backbone', 'mnv4_conv_x'], 'no backbone'),
        (TRAIN, [MINI, '--amp-dtype', 'fp16'], 'fp16 needs a GPU'),
        (TRAIN, [MINI, '--fused', '--cfg-options', 'optim_wrapper.optimizer.type=RMSprop'], 'no fused form'),
        ('bench.py', ['--only', 'everything'], 'no part'),
        (TRAIN, [MINI, '--data', 'nowhere'], 'no folder nowhere'),
        (TRAIN, [MINI, '--cfg-options', 'train_cf.max_epochs=1'], 'near: train_cfg'),
        (TRAIN, [MINI, '--resume', 'gone.pth', '--work-dir', '{tmp}/w'], 'no checkpoint file at gone.pth'),
        (TRAIN, [MINI, '--work-dir', '{tmp}/file/w'], 'cannot be made'),
        (
            TRAIN,
            [MINI, '--cfg-options', 'load_from=gone.pth', '--work-dir', '{tmp}/w'],
            'no checkpoint file at gone.pth',
        ),
        (TRAIN, [MINI, '--work-dir', '{tmp}/w', '--cfg-options', 'model.backbone.arch=conv_xl'], 'arch must be one of'),
        ('test.py', [MINI, 'gone.pth'], 'no checkpoint file at gone.pth'),
        ('test.py', ['gone.pth'], 'no checkpoint file at gone.pth'),
        ('test.py', [MINI, '{tmp}/file', '--out', 'x.pkl'], 'name a .json file'),
        ('infer.py', ['nothing.jpg', '{tmp}/file'], 'no image, folder or video nothing.jpg'),
        ('infer.py', ['{tmp}', '{tmp}/file'], 'no images'),
        ('infer.py', ['data/mini/coco/val2017', '{tmp}/file', '--out-dir', 'data/mini/coco/val2017'], 'overwritten'),
        ('infer.py', ['{tmp}/file', '{tmp}/file'], 'images end in'),
        ('infer.py', ['data/mini/coco/val2017', '{tmp}/file'], 'refused'),
        ('infer.py', ['data/mini/coco/val2017', '{tmp}/file', '--score-thr', '7'], 'must be in [0, 1]'),
        ('complexity.py', ['nothing'], 'no config nothing'),
        ('draw_dataset.py', ['{tmp}'], 'not an empty folder'),
        ('download_dataset.py', ['coco2017', '--root', '{tmp}/file'], 'is not a folder'),
    ],
)
def test_mistakes(call_tool, repository, tmp_path, monkeypatch, tool, arguments, message):
    monkeypatch.chdir(repository)
    (tmp_path / 'file').write_text('x')
    before = set(repository.iterdir())
    result = call_tool(tool, *(str(a).replace('{tmp}', str(tmp_path)) for a in arguments))
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert message in last
    assert 'Traceback' not in result.stderr
    assert set(repository.iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} <= {'file', 'w'}


@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco', 'mnv4_rtmdet_coco'])
def test_absent_coco_says_where_it_was_looked_for_and_what_runs_now(run_tool, tmp_path, name):
    result = run_tool(TRAIN, name, cwd=tmp_path)
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert f'{tmp_path}/data/coco/annotations/instances_train2017.json' in line
    assert 'tools/download_dataset.py coco2017' in line
    assert 'configs/mnv4_ssdlite_coco-mini.py' in line
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize(
    'tool', ['train.py', 'test.py', 'infer.py', 'complexity.py', 'draw_dataset.py', 'download_dataset.py']
)
def test_help(run_tool, tool):
    result = run_tool(tool, '--help')
    assert result.returncode == 0
    assert 'usage' in result.stdout


@pytest.mark.parametrize(
    'arguments',
    [
        [TRAIN, MINI, '--resume', '{evil}', '--work-dir', '{tmp}/w'],
        [TRAIN, MINI, '--work-dir', '{tmp}/w', '--cfg-options', 'load_from={evil}'],
        [
            TRAIN, MINI, '--work-dir', '{tmp}/w', '--cfg-options',
            'model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint={evil}',
        ],
        [
            TRAIN, MINI, '--work-dir', '{tmp}/w', '--cfg-options',
            'model.init_cfg.type=Pretrained', 'model.init_cfg.checkpoint={evil}',
        ],
        ['test.py', MINI, '{evil}'],
        ['test.py', '{evil}'],
        ['infer.py', 'data/mini/coco/val2017', '{evil}', '--out-dir', '{tmp}/o'],
    ],
    ids=['resume', 'load_from', 'backbone', 'detector', 'test', 'test-own-config', 'infer'],
)  # fmt: skip
def test_code_in_a_checkpoint_runs_by_no_way_in(call_tool, repository, tmp_path, monkeypatch, payload, arguments):
    monkeypatch.chdir(repository)
    torch.save(dict(state_dict={}, extra=payload), tmp_path / 'evil.pth')
    evil = str(tmp_path / 'evil.pth')
    result = call_tool(*(a.replace('{tmp}', str(tmp_path)).replace('{evil}', evil) for a in arguments))
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert 'evil.pth' in last
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('tool', [['test.py', '{evil}'], ['infer.py', 'data/mini/coco/val2017', '{evil}']])
def test_a_config_in_a_checkpoint_calls_nothing(call_tool, repository, tmp_path, monkeypatch, tool):
    monkeypatch.chdir(repository)
    text = f"model = dict(type='os.system', command='touch {tmp_path}/ran')"
    torch.save(dict(meta=dict(cfg=text), state_dict=dict(a=torch.zeros(1))), tmp_path / 'evil.pth')
    result = call_tool(*(part.replace('{evil}', str(tmp_path / 'evil.pth')) for part in tool))
    assert result.returncode == 2, result.stderr
    assert "type='os.system' is not registered" in result.stderr
    assert not (tmp_path / 'ran').exists()


def test_a_mistake_met_in_a_data_loaders_worker_is_one_line_too(load_tool, capsys):
    class Broken(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise UserError('x.jpg is not a readable picture')

    def read():
        next(iter(DataLoader(Broken(), num_workers=1)))

    assert load_tool('_cli').run(read) == 2
    assert capsys.readouterr().err == 'error: x.jpg is not a readable picture\n'
