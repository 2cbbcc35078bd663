"""Every argument of every command, given wrongly: one line of advice and exit code 2, before torch is imported.

The parsers are walked, so that a new argument cannot be forgotten. What is wrong for a number, a choice or a switch is
known from its parser; an argument that takes text needs a line in ``ARGUMENTS``, a new command one in ``POSITIONALS``.
"""

import argparse
import json
import os
import subprocess
import sys
import zipfile

import pytest
from stub_checkpoint import write_stub_checkpoint
from stub_file import write_detector

from mnv4_mm.cli import COMMANDS
from mnv4_mm.cli.arguments import Parser
from mnv4_mm.transfer.protocol import Run
from mnv4_mm.transfer.records import FAILED

MINI = 'mnv4_ssdlite_coco-mini'
SECONDS = 2.0  # of CPU time for a message, whatever else the machine does
# A valid value of each required positional argument of a command.
POSITIONALS = {
    'train': dict(config=MINI),
    'test': dict(config=MINI, checkpoint='{checkpoint}'),
    'infer': dict(source='{images}', checkpoint='{checkpoint}'),
    'label': dict(file='{exported}', images='{images}'),
    'export': dict(checkpoint='{checkpoint}'),
    'spread': dict(checkpoint='{checkpoint}', out='{new}'),
    'compare': dict(checkpoint='{checkpoint}'),
    'deploy': dict(
        deploy_cfg='{configs}/deploy/detection_onnxruntime_static.py',
        model_cfg=MINI,
        checkpoint='{checkpoint}',
        img='{image}',
    ),
    'parity': {},
    'configs': {},
    'configs copy': dict(name=MINI),
    'weights': {},
    'download': dict(name='coco2017'),
    'draw': dict(out='{new}'),
    'complexity': {},
    'bench': {},
    'env': {},
    'check': dict(path='{images}/..'),
    'demo': dict(model='{checkpoint}'),
    'report': dict(path='{checkpoint}'),
    'transfer': dict(protocol='bccd'),
    'results': dict(records='{records}'),
    'roofline': {},
    'blocks': {},
    'search': {},
    'search train': dict(config=MINI),
    'search profile': dict(checkpoint='{checkpoint}'),
    'search run': dict(checkpoint='{checkpoint}'),
    'search rank': dict(checkpoint='{checkpoint}'),
    'search export': dict(front='{front}'),
}
# Options that a command requires.
REQUIRED = {'label': dict(out='{new}'), 'search rank': dict(epochs='1'), 'search export': dict(choose='1')}
# Options without which another option has no effect.
NEEDED = {
    ('export', 'calibration'): ['--precision', 'int8'],
    ('bench', 'out'): ['--only', 'startup'],
    ('train', 'teacher_config'): ['--teacher', '{checkpoint}'],
    ('roofline', 'nets'): ['--measure'],
    ('blocks', 'only'): ['--measure'],
    ('search profile', 'measured'): ['--browser', '{folder}'],
}
# Wrong values of text.
DAMAGED = ['{truncated}', '{pickleless}', '{flat}', '{compressed}']
CHECKPOINT = ['{gone}.pth', '{folder}', '{text}', *DAMAGED]
CONFIG = ['mnv4_nothing', '{gone}.py', '{folder}', '{text}', '{broken}', '{cut}', '{undefined}']
DATA = ['{gone}', '{text}', '{empty}']
IMAGES = ['{gone}.jpg', '{text}', '{empty}']
OUT_FOLDER = ['{text}', '{text}/x']
OUT_FILE = ['{folder}', '{text}/x.json']
PAIRS = ['lr', '=5', 'nothing.at.all=5']
DEVICE = ['gpu', 'cuda:x', 'cpu cpu']
# Argument, or command and argument -> wrong values. Empty text is always one of them.
ARGUMENTS = {
    'config': CONFIG,
    'model_cfg': CONFIG,
    'configs': CONFIG,
    'configs copy name': CONFIG,
    'checkpoint': CHECKPOINT,
    'backbone': ['mnv4_conv_x', 'resnet50', 'timm:', 'timm:nosuch', 'timm:nosuch.a1_in1k'],
    'data': DATA,
    'compare data': DATA[:2],  # its task is that of the checkpoint
    'report data': DATA[:2],
    'cfg_options': PAIRS,
    'deploy cfg_options': PAIRS[:2],
    'work_dir': OUT_FOLDER,
    'out_dir': OUT_FOLDER,
    'show_dir': OUT_FOLDER,
    'folder': OUT_FOLDER,
    'root': OUT_FOLDER,
    'resume': CHECKPOINT,
    'out': OUT_FILE,
    'test out': [*OUT_FILE, '{new}.pkl'],
    'configs copy out': ['{folder}', '{text}/x.py', '{new}.txt'],
    'draw out': [*OUT_FOLDER, '{folder}'],
    'source': [*IMAGES, '{gone}'],
    'label file': ['{gone}.onnx', '{text}', '{folder}'],
    'label images': ['{gone}', '{empty}', '{cut}'],
    'label out': [*OUT_FOLDER, '{folder}', '{images}', '{images}/x'],
    'ray': ['no such host'],
    'coco': ['{folder}', '{text}/x.json', '{new}.txt'],
    'img': ['{gone}.jpg', '{text}', '{folder}'],
    'test_img': ['{gone}.jpg', '{text}', '{folder}'],
    'calibration': DATA,
    'backgrounds': DATA,
    'device': DEVICE,
    'files': ['{gone}.onnx', '{text}', '{folder}'],
    'to': ['tensorrt'],
    'measured': ['{gone}.jsonl', '{folder}', '{text}'],
    'npu': ['nosuch'],
    'models': ['nosuch'],
    'nets': ['nosuch'],
    'only': ['nosuch'],
    'arch': ['nosuch'],
    'deploy_cfg': ['{gone}.py', '{folder}', '{text}', '{broken}'],
    'calib_dataset_cfg': ['x'],
    'quant_image_dir': ['x'],
    'uri': ['x'],
    # Commands of the data check, the page and the report.
    'check path': DATA,
    'fix': [*OUT_FOLDER, '{folder}'],
    'check report': ['{folder}', '{text}/x.html', '{new}.txt'],
    'model': CHECKPOINT,
    'host': ['no such host'],
    'report path': CHECKPOINT,
    'report out': OUT_FOLDER,
    'weights': ['{gone}.pth', '{folder}', '{text}', *DAMAGED],
    'teacher': CHECKPOINT,
    'qat': CHECKPOINT,
    'teacher_config': CONFIG,
    'labels': ['nosuch'],
    # Commands of transfer.
    'protocol': ['nosuch', '{gone}.py', '{folder}', '{text}', '{broken}', '{cut}'],
    'transfer out': OUT_FOLDER,
    'transfer nets': ['mnv4_conv_x'],
    'heads': ['nosuch'],
    'starts': ['nosuch'],
    'weights_dir': ['{gone}', '{text}'],
    'slurm': ['partition', '=5'],
    'records': ['{gone}.jsonl', '{folder}', '{text}'],
    'page': ['{folder}', '{text}/x.md', '{new}.txt'],
    'annotations': ['{gone}.json', '{folder}', '{text}'],
    # Commands of search.
    'search profile out': ['{folder}', '{text}/x.json', '{new}.txt'],
    'search profile blocks': ['0', '-1', '1.5', 'many'],
    'browser': OUT_FOLDER,
    'latency': ['{gone}.json', '{folder}', '{text}', '{front}'],
    'limit': ['0', '-1', 'inf', 'nan', 'many', 'ms', '12ms'],
    'choose': ['0', '-1', 'nan', 'many', 'ms', '12ms'],
    'search run out': OUT_FOLDER,
    'search rank out': OUT_FOLDER,
    'front': ['{gone}.json', '{folder}', '{text}'],
    'search export out': ['{folder}', '{text}/x.pth', '{new}.txt'],
}  # fmt: skip
# Numbers that are out of range, where it is not only -1 and NaN.
RANGES = {
    'epochs': ['0'],
    'iters': ['0'],
    'score_thr': ['2'],
    'tolerance': ['inf'],
    'int8_tolerance': ['inf'],
    'export size': ['0', '33', '32 32 32'],
    'draw size': ['0', '63', '5000'],
    'draw train': ['0'],
    'draw val': ['0'],
    'size': ['0', '33', '32 32 32'],
    'workers': ['0'],
    'part': ['0'],
    'seeds': ['99'],
    'port': ['65536'],
    'rounds': ['0'],
    'nets': ['0'],
    'images': ['0'],
    'threads': ['0'],
    'search profile nets': ['2'],
    'search rank nets': ['2'],
}
# torch.distributed.launch passes it, and nobody else.
IGNORED = ('local_rank',)
CALL = """
import io, json, signal, sys, time
from contextlib import redirect_stderr, redirect_stdout
from mnv4_mm.cli import main
def stop(*_):
    raise TimeoutError
signal.signal(signal.SIGPROF, stop)
signal.signal(signal.SIGALRM, stop)
for arguments in json.loads(sys.argv[1]):
    signal.setitimer(signal.ITIMER_PROF, 5)
    signal.alarm(30)
    started = time.process_time()
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()) as out:
        try:
            code = main(arguments)
        except BaseException as error:
            code = repr(error)
    seconds = time.process_time() - started
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    heavy = sorted({'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg'} & set(sys.modules))
    print(json.dumps([code, err.getvalue(), out.getvalue(), seconds, heavy]), flush=True)
    if heavy:
        break
"""


def walk():
    """Yield name and parser of each command and sub-command."""
    for name, (_, add) in COMMANDS.items():
        parser = Parser(prog=f'mnv4 {name}')
        add(parser)
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub, sub_parser in action.choices.items():
                    yield f'{name} {sub}', sub_parser


def wrong_values(command, action):
    """Return wrong values of an argument; None if nobody has declared any."""
    table = {**ARGUMENTS, **RANGES}
    declared = table.get(f'{command} {action.dest}', table.get(action.dest))
    if action.nargs == 0:
        return ['=yes']
    if action.choices:
        return ['nosuch', '']
    if action.type is int:
        return ['ten', '1.5', 'nan', '-1', '', *(declared or [])]
    if action.type is float:
        return ['many', '-1', 'nan', '', *(declared or [])]
    return None if declared is None else [*declared, '']


def command_line(command, parser, action, value):
    """Return a command with valid arguments, but one of them a wrong value."""
    line = command.split()
    for positional in parser._actions:
        if positional.option_strings or isinstance(positional, argparse._SubParsersAction):
            continue
        if positional is action:
            line += value.split() if value.startswith('-') else [value]
        elif positional.dest in POSITIONALS[command]:
            line.append(POSITIONALS[command][positional.dest])
    for name, required in REQUIRED.get(command, {}).items():
        if name != action.dest:
            line += [f'--{name}', required]
    if action.option_strings:
        flag = action.option_strings[0]
        line += NEEDED.get((command, action.dest), [])
        parts = value.split(' ') if action.nargs == '+' and action.type is int else [value]
        line += (
            [flag + value]
            if action.nargs == 0
            else [f'{flag}={parts[0]}', *parts[1:]]
            if len(parts) == 1
            else [flag, *parts]
        )
    return line


CASES = [
    (command, action, value, command_line(command, parser, action, value))
    for command, parser in walk()
    for action in parser._actions
    if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction) and action.dest not in IGNORED
    for value in wrong_values(command, action) or ()
]


def test_every_argument_has_wrong_values():
    undeclared = [
        f'{command} {action.dest}'
        for command, parser in walk()
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction) and action.dest not in IGNORED
        if wrong_values(command, action) is None
    ]
    assert not undeclared, f'add to ARGUMENTS: {undeclared}'
    assert {command for command, _ in walk()} <= POSITIONALS.keys()


@pytest.fixture(scope='module')
def answers(repository, tmp_path_factory):
    """Exit code, stderr, stdout, seconds and heavy imports of each of CASES."""
    tmp, cwd = tmp_path_factory.mktemp('wrong'), tmp_path_factory.mktemp('cwd')
    (tmp / 'text.txt').write_text('text')
    (tmp / 'folder').mkdir()
    (tmp / 'folder/text.txt').write_text('text')
    (tmp / 'empty').mkdir()
    (tmp / 'broken.py').write_text("_base_ = 'gone.py'")
    (tmp / 'cut.py').write_text('model = dict(')
    (tmp / 'undefined.py').write_text('model = unknown')
    write_stub_checkpoint(tmp / 'net.pth')
    write_stub_checkpoint(tmp / 'pickleless.pth', name='net/other')
    write_stub_checkpoint(tmp / 'flat.pth', name='data.pkl')
    (tmp / 'truncated.pth').write_bytes((tmp / 'net.pth').read_bytes()[:-30])
    with zipfile.ZipFile(tmp / 'compressed.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('net/data.pkl', bytes(100_000))
    record = dict.fromkeys((*Run._fields, *FAILED, 'protocol'), '') | dict(seed=0)
    (tmp / 'records.jsonl').write_text(json.dumps(record))
    write_detector(tmp / 'net.onnx')
    content = dict(supernet=str(tmp / 'net.pth'), sha256='', metric='mIoU', images=1, plan={})
    net = dict(genes=[0], score=0.5, cost=0.1)
    (tmp / 'front.json').write_text(
        json.dumps({**content, 'nets': [net], 'sizes': [[64, 64]], 'unit': 'GMACs', 'baselines': {}})
    )
    images = repository / 'data/mini/coco/val2017'
    places = dict(
        gone=tmp / 'gone', text=tmp / 'text.txt', folder=tmp / 'folder', empty=tmp / 'empty', broken=tmp / 'broken.py',
        cut=tmp / 'cut.py', checkpoint=tmp / 'net.pth', new=tmp / 'new', images=images, image=min(images.glob('*.jpg')),
        configs=repository / 'configs', records=tmp / 'records.jsonl',
        exported=tmp / 'net.onnx', front=tmp / 'front.json', undefined=tmp / 'undefined.py',
        **{name: tmp / f'{name}.pth' for name in ('truncated', 'pickleless', 'flat', 'compressed')},
    )  # fmt: skip
    before = {path.relative_to(tmp) for path in tmp.rglob('*')}
    lines = [[part.format(**places) for part in line] for *_, line in CASES]
    found = []
    while len(found) < len(lines):  # a new interpreter after each that has imported torch
        result = subprocess.run(
            [sys.executable, '-c', CALL, json.dumps(lines[len(found) :])], cwd=cwd, capture_output=True, text=True,
            env=dict(os.environ, PYTHONPATH=str(repository)),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        found += [json.loads(line) for line in result.stdout.splitlines()]
    assert {path.relative_to(tmp) for path in tmp.rglob('*')} == before
    assert not list(cwd.iterdir())
    return found, places


@pytest.mark.parametrize('number', range(len(CASES)), ids=[' '.join(line) for *_, line in CASES])
def test_a_wrong_argument_is_one_line_of_advice(answers, number):
    found, places = answers
    code, err, out, seconds, heavy = found[number]
    _, action, value, _ = CASES[number]
    assert code == 2, (code, err, out)
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    assert 'Traceback' not in err
    assert out == ''
    names = [*action.option_strings, action.dest, action.metavar or action.dest]
    given = value.format(**places)
    assert any(name in err for name in names) or (given and given in err), err
    assert seconds < SECONDS
    assert heavy == []
