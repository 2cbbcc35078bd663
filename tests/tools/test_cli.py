"""A user's mistake is one line on stderr and exit code 2, for every tool and every kind of argument."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mnv4_mm.cli import COMMANDS, exit_codes, main
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
        (
            'infer.py',
            ['data/mini/coco/val2017/000000005001.jpg', '{tmp}/file', '--out-dir', 'data/mini/coco/val2017/'],
            'overwritten',
        ),
        ('infer.py', ['{tmp}/file', '{tmp}/file'], 'images end in'),
        ('infer.py', ['data/mini/coco/val2017', '{tmp}/file'], 'is not a checkpoint'),
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
    assert 'mnv4 download coco2017' in line
    assert 'mnv4 train mnv4_ssdlite_coco-mini' in line
    assert not (tmp_path / 'work_dirs').exists()


def test_a_tool_calls_its_command(run_tool):
    result = run_tool('train.py', '--help')
    assert result.returncode == 0
    assert result.stdout.startswith('usage: mnv4 train')


@pytest.mark.parametrize(
    ('tool', 'command'),
    [
        ('bench', 'bench'), ('compare', 'compare'), ('complexity', 'complexity'), ('deploy', 'deploy'),
        ('download_dataset', 'download'), ('draw_dataset', 'draw'), ('export', 'export'), ('infer', 'infer'),
        ('list_weights', 'weights'), ('parity', 'parity'), ('test', 'test'), ('train', 'train'),
    ],
)  # fmt: skip
def test_help(call_tool, tool, command):
    result = call_tool(tool, '--help')
    assert result.returncode == 0
    assert result.stdout.startswith(f'usage: mnv4 {command}')


def test_every_command_is_listed_with_its_summary(capsys):
    with pytest.raises(SystemExit) as ended:
        main(['--help'])
    assert ended.value.code == 0
    shown = ' '.join(capsys.readouterr().out.split())
    for name, (summary, _) in COMMANDS.items():
        assert f'{name} {summary}' in shown


# Arguments -> a part of the message. None of them needs torch or OpenMMLab.
LIGHT = [
    (['trian'], "invalid choice: 'trian'"),
    (['train'], 'required: config'),
    (['train', MINI, '--epocs', '3'], 'no option --epocs of `mnv4 train`; near: --epochs'),
    (['train', MINI, MINI], f"unexpected argument '{MINI}'"),
    (['train', 'mnv4_ssdlight'], 'near: mnv4_ssdlite_coco'),
    (['train', 'README.md'], 'expected a .py file'),
    (['train', '{tmp}/syntax.py'], "syntax.py cannot be read: SyntaxError: '(' was never closed"),
    (['train', '{tmp}/no_base.py'], 'no file {tmp}/gone.py, named by its _base_'),
    (['test', '{tmp}/syntax.py', '{tmp}/file'], 'syntax.py cannot be read: SyntaxError'),
    (['train', MINI, '--backbone', 'mnv4_conv_x'], "no backbone 'mnv4_conv_x'; near: mnv4_conv_"),
    (['train', '{tmp}/resnet.py', '--backbone', 'mnv4_conv_s'], 'whose model.backbone is of type MobileNetV4'),
    (['train', MINI, '--iters', '5'], 'this config counts in epochs; use --epochs'),
    (['train', 'mnv4_lraspp_ade20k-mini', '--epochs', '5'], 'this config counts in iters; use --iters'),
    (['train', MINI, '--cfg-options', 'train_cf.max_epochs=1'], "the config has no 'train_cf'; near: train_cfg"),
    (['train', 'mnv4_rtmdet_coco', '--cfg-options', 'batch_size=1'], 'setting it now would do nothing'),
    (['train', MINI, '--epochs', '0'], '--epochs must be an integer of at least 1, got 0'),
    (['train', MINI, '--epochs', 'ten'], "invalid int value: 'ten'"),
    (['train', MINI, '--amp-dtype', 'fp8'], "invalid choice: 'fp8'"),
    (['complexity', '--backbone', 'timm:repvit_m1_2'], "timm has no net 'repvit_m1_2'; near: repvit_m1_5"),
    (['train', MINI, '--cfg-options', 'load_from'], "--cfg-options takes KEY=VALUE, got 'load_from'"),
    (['train', MINI, '--data', 'nowhere'], 'no folder nowhere'),
    (['train', MINI, '--data', '{cwd}'], 'no data set in a known format'),
    (['train', MINI, '--data', '{tmp}/broken'], 'instances_train.json is not JSON'),
    (['train', 'mnv4_lraspp_ade20k-mini', '--data', '{cwd}'], 'has no masks beside images: --data takes a folder with'),
    (['train', MINI, '--resume', 'gone.pth'], 'no checkpoint file at gone.pth'),
    (['train', MINI, '--work-dir', '{tmp}/file/w'], 'cannot be made'),
    (['train', 'mnv4_ssdlite_coco'], 'looked for {cwd}/data/coco/annotations/instances_train2017.json'),
    (['train', 'mnv4_segformer_ade20k'], 'looked for {cwd}/data/ade/ADEChallengeData2016/images/training'),
    (
        ['train', 'mnv4_ssdlite_coco', '--cfg-options', 'train_dataloader.dataset.dataset.data_root=gone'],
        'looked for {cwd}/gone/annotations/instances_train2017.json',
    ),
    # Data that --cfg-options name is there: what is missing then is the checkpoint.
    (
        [
            'test',
            'mnv4_ssdlite_coco',
            'gone.pth',
            '--cfg-options',
            'test_dataloader.dataset.data_root={images}/..',
        ],
        'no checkpoint file at gone.pth',
    ),
    (['test', MINI, 'gone.pth'], 'no checkpoint file at gone.pth'),
    (['test', 'gone.pth'], 'no checkpoint file at gone.pth'),
    (['test', 'gone.pth', '--backbone', 'mnv4_conv_x'], 'no backbone'),
    (['test', MINI, '{tmp}/file', '--cfg-options', 'modl.neck=None'], "the config has no 'modl'; near: model"),
    (['test', MINI, '{tmp}/file', '--out', 'x.pkl'], 'name a .json file'),
    (['test', 'mnv4_lraspp_ade20k-mini', '{tmp}/file', '--out', '{tmp}/file'], 'name a folder'),
    (['infer', 'nothing.jpg', '{tmp}/file'], 'no image, folder or video nothing.jpg'),
    (['infer', '{cwd}', '{tmp}/file'], 'no images'),
    (['infer', '{images}', 'gone.pth'], 'no checkpoint'),
    (['infer', '{images}', '{tmp}/file', '--score-thr', '7'], 'must be in [0, 1]'),
    (['infer', '{images}', '{tmp}/file', '--config', '{tmp}/syntax.py'], 'syntax.py cannot be read'),
    (['infer', '{images}', '{tmp}/file', '--out-dir', '{tmp}/file/x'], 'cannot be made'),
    (['export', '{tmp}/file', '--config', '{tmp}/no_base.py'], 'named by its _base_'),
    (['export', 'gone.pth'], 'no checkpoint file at gone.pth'),
    (['export', '{tmp}/file', '--to', 'tensorrt'], '--to tensorrt: there are onnx, openvino'),
    (['export', '{tmp}/file', '--precision', 'int4'], "invalid choice: 'int4'"),
    (['export', '{tmp}/file', '--to', 'ncnn', '--precision', 'bf16'], '--precision bf16 does not fit ncnn'),
    (['export', '{tmp}/file', '--size', '100', '100'], 'multiples of 32'),
    (['export', '{tmp}/file', '--out-dir', '{tmp}/file/x'], 'cannot be made'),
    (['compare', 'gone.pth'], 'no checkpoint file at gone.pth'),
    (['compare', '{tmp}/file', '--rounds', '-1'], 'must not be negative'),
    (['compare', '{tmp}/file', '--out', '{tmp}'], 'is a folder'),
    (['compare', '{tmp}/file', '--npu', 'ethos-u55-100'], '--npu ethos-u55-100: there are ethos-u55-32, '),
    (['parity', '--to', 'tensorrt'], '--to tensorrt: there are onnx, openvino'),
    (['deploy', 'x.py', 'mnv4_nothing', 'gone.pth', 'x.jpg'], 'no config mnv4_nothing'),
    (['configs', 'copy', 'mnv4_nothing'], 'no config mnv4_nothing'),
    (['configs', 'copy', MINI, '--out', '{tmp}/file'], 'name one that ends in .py'),
    (['configs', 'copy', '{tmp}/syntax.py', '--out', '{tmp}/x.py'], 'syntax.py cannot be read'),
    (['complexity', 'nothing'], 'no config nothing'),
    (['complexity', '--backbone', 'mnv4_conv_x'], 'no backbone'),
    (['weights', '--arch', 'conv_x'], "no weights of 'conv_x'; there are weights of conv_aa_l"),
    (['bench', '--only', 'everything'], 'no part'),
    (['bench', '--only', 'startup', '--out', '{tmp}'], 'is a folder'),
    (['train', MINI, '--cfg-options', 'load_from=5'], 'a checkpoint is named by its path, got 5'),
    (['train', '{configs}/_base_/models/ssdlite.py'], 'it has no train_dataloader, train_cfg, optim_wrapper'),
    (['train', '{configs}/deploy/detection_onnxruntime_static.py'], 'it has no model, train_dataloader'),
    (['test', MINI, '{tmp}/file'], 'is not a checkpoint: it is neither a zip archive nor a pickle'),
    (['test', '{tmp}/file'], 'file is not a checkpoint: it is '),
    (['infer', '{images}', '{tmp}/file', '--out-dir', '{tmp}/o'], 'file is not a checkpoint: it is '),
    (['export', '{tmp}/file'], 'file is not a checkpoint: it is '),
    (['train', MINI, '--resume', '{tmp}/file'], 'file is not a checkpoint: it is '),
    (['train', MINI, '--launcher', 'slurm'], '--launcher slurm is for processes started by `srun'),
    (['test', MINI, '{tmp}/file', '--launcher', 'mpi'], '--launcher mpi is for processes started by `mpirun'),
    (['test'], 'the following arguments are required: checkpoint'),
    (['compare', '{tmp}/file', '--tolerance', 'nan'], 'must not be negative, infinite or NaN, got nan'),
    (['compare', '{tmp}/file', '--int8-tolerance', 'inf'], 'must not be negative, infinite or NaN, got 0.001, inf'),
    (['draw', '{tmp}/d', '--seed', '-1'], '--seed must not be negative, got -1'),
    (['draw', '{tmp}/d', '--backgrounds', '{tmp}/broken_images'], 'broken.jpg is not a readable image'),
    (['infer', '{images}', '{tmp}/file', '--out-dir', '{tmp}/file'], 'cannot be made'),
    (['train', ''], 'argument config: empty (an unset variable of the shell?)'),
    (['train', MINI, '--data', ''], 'argument --data: empty'),
    (['train', MINI, '--data='], 'argument --data: empty'),
    (['train', MINI, '--backbone', ''], 'argument --backbone: empty'),
    (['train', MINI, '--work-dir', ''], 'argument --work-dir: empty'),
    (['train', MINI, '--resume', ''], 'argument --resume: empty'),
    (['train', MINI, '--cfg-options', ''], 'argument --cfg-options: empty'),
    (['test', MINI, ''], 'argument checkpoint: empty'),
    (['test', MINI, '{tmp}/file', '--out', ''], 'argument --out: empty'),
    (['infer', '{images}', '{tmp}/file', '--out-dir', ''], 'argument --out-dir: empty'),
    (['export', '{tmp}/file', '--calibration', ''], 'argument --calibration: empty'),
    (['compare', '{tmp}/file', 'a.onnx', ''], 'argument files: empty'),
    (['parity', '--folder', ''], 'argument --folder: empty'),
    (['configs', 'copy', MINI, '--out', ''], 'argument --out: empty'),
    (['compare', '{tmp}/file', '--out', '/dev/null'], '/dev/null is not a regular file'),
    (['compare', '{tmp}/file', '--out', '/dev/stdout'], '/dev/stdout is not a regular file'),
    (['draw', '{tmp}/d', '--backgrounds', ''], 'argument --backgrounds: empty'),
    (['download', 'coco2017', '--root', ''], 'argument --root: empty'),
    (['draw', '{tmp}'], 'not an empty folder'),
    (['download', 'coco2017', '--root', '{tmp}/file'], 'is not a folder'),
]
CALL = """
import io, json, sys
from contextlib import redirect_stderr
from mnv4_mm.cli import main
for arguments in json.loads(sys.argv[1]):
    with redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    heavy = sorted({'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg'} & set(sys.modules))
    print(json.dumps([code, err.getvalue(), heavy]), flush=True)
"""


@pytest.fixture(scope='module')
def answers(repository, tmp_path_factory):
    """Exit code, stderr and heavy imports of each of LIGHT, called one after the other in one new interpreter."""
    tmp, cwd = tmp_path_factory.mktemp('mistakes'), tmp_path_factory.mktemp('cwd')
    (tmp / 'file').write_text('x')
    (tmp / 'syntax.py').write_text('model = dict(')
    (tmp / 'no_base.py').write_text("_base_ = 'gone.py'")
    (tmp / 'resnet.py').write_text("model = dict(backbone=dict(type='ResNet'))")
    (tmp / 'broken_images').mkdir()
    (tmp / 'broken_images/broken.jpg').write_bytes(b'no')
    for name in ('train', 'val'):
        (tmp / 'broken' / name).mkdir(parents=True)
        (tmp / 'broken/annotations').mkdir(exist_ok=True)
        (tmp / f'broken/annotations/instances_{name}.json').write_text('{"images": [')
    (cwd / 'README.md').touch()
    places = dict(tmp=str(tmp), cwd=str(cwd), images=str(repository / 'data/mini/coco/val2017'))
    places['configs'] = str(repository / 'configs')
    commands = [[argument.format(**places) for argument in arguments] for arguments, _ in LIGHT]
    result = subprocess.run(
        [sys.executable, '-c', CALL, json.dumps(commands)],
        cwd=cwd, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(repository)),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp.iterdir()} == {
        'file',
        'broken',
        'broken_images',
        'syntax.py',
        'no_base.py',
        'resnet.py',
    }
    assert {path.name for path in cwd.iterdir()} == {'README.md'}
    return [json.loads(line) for line in result.stdout.splitlines()], places


@pytest.mark.parametrize('number', range(len(LIGHT)), ids=[' '.join(arguments) for arguments, _ in LIGHT])
def test_a_mistake_is_reported_before_torch_is_imported(answers, number):
    found, places = answers
    code, err, heavy = found[number]
    assert code == 2
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    assert LIGHT[number][1].replace('{cwd}', places['cwd']).replace('{tmp}', places['tmp']) in err
    assert heavy == []


def test_output_that_is_read_in_part_is_no_traceback(repository):
    code = 'import sys; from mnv4_mm.cli import main; sys.exit(main(["configs"]))'
    with subprocess.Popen(
        [sys.executable, '-u', '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ, PYTHONPATH=str(repository)),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ''
    assert process.returncode == 1


def test_a_missing_package_is_reported_before_anything_is_converted(tmp_path, monkeypatch, capsys):
    from mnv4_mm.deploy.targets import TARGETS

    monkeypatch.setattr(TARGETS['ncnn'], 'absent', lambda convert=False: 'ncnn is not installed here')
    assert main(['export', str(tmp_path / 'any.pth'), '--to', 'ncnn']) == 2
    assert capsys.readouterr().err == 'error: ncnn is not installed here\n'


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


def test_a_mistake_met_in_a_data_loaders_worker_is_one_line_too(capsys):
    class Broken(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise UserError('x.jpg is not a readable image')

    def read():
        next(iter(DataLoader(Broken(), num_workers=1)))

    assert exit_codes.run(read) == 2
    assert capsys.readouterr().err == 'error: x.jpg is not a readable image\n'


def test_every_package_that_training_needs_is_named_if_it_is_missing(repository):
    """Import names differ from those in pyproject.toml for a few packages."""
    names = {'opencv-python': 'cv2', 'pillow': 'PIL', 'pyyaml': 'yaml', 'faster-coco-eval': 'faster_coco_eval'}
    project = (repository / 'pyproject.toml').read_text()
    blocks = re.findall(r'^(?:dependencies|train|label|timm) = (\[.*?\])(?=$| )', project, re.M | re.S)
    packages = {package for block in blocks for package in re.findall(r'"([\w-]+)', block)}
    assert len(packages) > 15
    assert {names.get(package, package) for package in packages} <= set(exit_codes.REQUIRED)
