"""The options of a command line, of the Python API and of the config are one list."""

import argparse
import inspect
import subprocess
import sys

import pytest
from mmengine.config import DictAction

from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.apis.train import train
from mnv4_mm.config.options import LAUNCHERS, EvaluateOptions, TrainOptions, check_launcher, read_value
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_class_map_folder


def parsed(kind, *arguments):
    parser = argparse.ArgumentParser()
    kind.add_arguments(parser)
    return kind.from_namespace(parser.parse_args(arguments))


@pytest.mark.parametrize(('kind', 'function'), [(TrainOptions, train), (EvaluateOptions, evaluate_files)])
def test_api_and_command_line_take_the_same_options(kind, function):
    parameters = inspect.signature(function).parameters.values()
    keywords = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert keywords == kind().as_arguments() == parsed(kind).as_arguments()
    assert all(f'        {name}: ' in function.__doc__ for name in keywords)


def test_parsing():
    assert parsed(TrainOptions, '--resume', '--epochs', '3', '--no-fused', '--channels-last', '--compile') == (
        TrainOptions(resume=True, epochs=3, fused=False, channels_last=True, compiled=True)
    )
    assert parsed(TrainOptions, '--resume', 'x.pth').resume == 'x.pth'
    pairs = ['a.b=1e-3', 'c=(1, 2)', 'd=True', 'e=false', 'f=None', 'g=x=y']
    assert parsed(EvaluateOptions, '--cfg-options', *pairs, '--cfg-options', 'h=[]').cfg_options == {
        'a.b': 1e-3, 'c': (1, 2), 'd': True, 'e': False, 'f': None, 'g': 'x=y', 'h': [],
    }  # fmt: skip
    parsed(TrainOptions, '--local_rank', '1')  # torch.distributed.launch passes it


TEXTS = [
    '1', '-1', '1e-3', '.5', 'inf', '1_000', 'True', 'false', 'TRUE', 'None', 'none', 'null', '', 'a', 'a.b', '0x10',
    "'a'", '"a"', "'3'", '1,2', 'b,c', '1,', ',', 'a,,b', '[]', '()', '[1]', '(1)', '(1,)', '[b,c]', '(b, c)',
    "['a', 'b']", '[1, 2.5, x, true, None]', '[(1, 2), [a, b], c]', '(1,2),x', 'a,(b,c),[d]', '[[]]', '[[1,2]]',
    '((1,2),(3,))', "'[1,2]'", '/a/b.pth', 'timm://x', 'a=b', 'f(x)', 'a(b', '[[a], [b, [c, (d,)]]]', '-inf',
]  # fmt: skip


@pytest.mark.parametrize('text', TEXTS)
def test_values_are_read_as_by_mmengine(text):
    expected = DictAction._parse_iterable(text)
    assert repr(read_value(text)) == repr(expected)  # repr: 1 is not True, and a tuple is not a list


def test_values_that_mmengine_does_not_read():
    assert read_value("{'type': 'X', 'n': [1, 2]}") == dict(type='X', n=[1, 2])
    assert read_value("[{'a': 1, 'b': 2}, {'a': 3}]") == [dict(a=1, b=2), dict(a=3)]
    assert read_value('/my data/x y') == '/my data/x y'
    # Its recursion has no end, or brackets that do not belong together are removed.
    assert read_value('[1],[2]') == [[1], [2]]
    assert read_value('(1,2),(3,4)x') == [(1, 2), '(3,4)x']
    for text in ('[1,2', '1,2]', '[(1, 2]', 'a),(b'):
        with pytest.raises(ValueError, match='brackets do not match'):
            read_value(text)


@pytest.mark.parametrize(
    ('kind', 'values', 'message'),
    [
        (TrainOptions, dict(epochs=0), '--epochs must be an integer of at least 1, got 0'),
        (TrainOptions, dict(iters='7'), "--iters must be an integer of at least 1, got '7'"),
        (TrainOptions, dict(epochs=True), '--epochs must be an integer'),
        (TrainOptions, dict(epochs=1, iters=1), 'exclude each other'),
        (TrainOptions, dict(amp_dtype='fp8'), "--amp-dtype must be fp16 or bf16, got 'fp8'"),
        (TrainOptions, dict(launcher='torchrun'), '--launcher must be one of none, pytorch, slurm, mpi'),
        (TrainOptions, dict(data=''), 'argument --data: empty'),
        (TrainOptions, dict(resume=''), 'argument --resume: empty'),
        (EvaluateOptions, dict(show_dir=''), 'argument --show-dir: empty'),
        (TrainOptions, dict(resume=5), '--resume must be a checkpoint file, True or False, got 5'),
        (TrainOptions, dict(qat='x.pth', teacher='y.pth'), '--qat and --teacher exclude each other: the feature maps'),
        (TrainOptions, dict(qat='x.pth', amp=True), '--qat and --amp exclude each other: a rounding to 8 bits needs'),
        (EvaluateOptions, dict(on='test'), '--on must be val or train'),
        (EvaluateOptions, dict(inference='both'), '--inference must be whole or slide'),
    ],
)
def test_invalid_values(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_options_as_a_command_line_are_parsed_to_the_same():
    """The command that a report shows trains with the options of the run."""
    options = TrainOptions(
        data='my data',
        epochs=3,
        amp=True,
        fused=False,
        channels_last=True,
        resume=True,
        cfg_options={'train_dataloader.batch_size': 4, 'model.names': ['a', 'b'], 'input_size': (1, 2), 'x': None},
    )
    arguments = options.as_command_line()
    assert {'--amp', '--no-fused', '--channels-last', 'train_dataloader.batch_size=4'} < set(arguments)
    assert '--backbone' not in arguments
    parser = argparse.ArgumentParser()
    TrainOptions.add_arguments(parser)
    assert TrainOptions.from_namespace(parser.parse_args(arguments)) == options


@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_a_launcher_needs_its_environment(launcher, monkeypatch):
    command, variable = LAUNCHERS[launcher]
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=f'--launcher {launcher} is for processes started by `{command}'):
        check_launcher(launcher)
    monkeypatch.setenv(variable, '0')
    check_launcher(launcher)


def test_importing_the_options_is_light(repository):
    code = "import sys, mnv4_mm.config.options; print([m for m in ('torch', 'mmengine', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, '-c', code], cwd=repository, capture_output=True, text=True)
    assert run.stdout == '[]\n', run.stderr


def test_an_existing_folder_whose_name_has_a_dot_takes_class_maps(tmp_path):
    folder = tmp_path / 'res.v2'
    with pytest.raises(UserError, match='name a folder'):
        check_class_map_folder(folder)
    folder.mkdir()
    check_class_map_folder(folder)
