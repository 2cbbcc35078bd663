"""Protocols, claims, records and plans of transfer runs: without any training."""

import json
import multiprocessing
import os
import time
from dataclasses import replace

import pytest

from mnv4_mm.errors import UserError
from mnv4_mm.json_lines import append_line
from mnv4_mm.transfer import claims, estimate
from mnv4_mm.transfer.estimate import plan_lines
from mnv4_mm.transfer.protocol import Run, protocol_index, read_protocol, select
from mnv4_mm.transfer.records import latest, read_records
from mnv4_mm.transfer.work import Digests, check_same, remaining

RUN = Run('lraspp', 'mnv4_conv_s', 'random', '', 0)
FAILURE = {'protocol': 'x', **RUN._asdict(), 'recipe': 'r', 'data': 'd', 'error': 'reason'}
TEXT = """
title = 'T'
heads = dict(a=dict(config='mnv4_ssdlite_bccd', epochs=1))
nets = ['mnv4_conv_s', 'timm:resnet18']
seeds = [0, 1]
"""


@pytest.mark.parametrize('name', protocol_index())
def test_shipped_protocols_are_valid(name):
    runs = read_protocol(name).runs()
    assert len({run.name for run in runs}) == len(runs)


def test_a_protocol_has_every_combination_and_its_controls(tmp_path):
    file = tmp_path / 'p.py'
    file.write_text(f"{TEXT}starts = ['random', 'imagenet']\nimagenet_nets = ['timm:resnet18']\ncontrols = ['twin']\n")
    runs = read_protocol(file).runs()
    assert len(runs) == 2 * (3 + 1)  # seeds x (two nets from random weights, one from ImageNet's, and the twin)
    assert [run.seed for run in runs if run.control] == [100, 101]
    assert [run.net for run in select(runs, starts=['imagenet'], seeds=[1])] == ['timm:resnet18']
    assert [run.seed for run in select(runs, seeds=[1]) if run.control] == [101]  # the twin of this seed
    with pytest.raises(UserError, match='--nets: mnv4_conv_l is not in this protocol; near: mnv4_conv_s'):
        select(runs, nets=['mnv4_conv_l'])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('title = 1 +', 'cannot be read'),
        ('import os', 'must consist of plain values'),
        (TEXT.replace('nets', 'backbones'), "'backbones' is not part of a protocol"),
        (TEXT.replace('conv_s', 'conv_x'), 'no backbone'),
        (TEXT.replace('timm:resnet18', 'mnv4_conv_s'), 'listed twice'),
        (TEXT.replace('epochs=1', 'epoch=1'), 'epoch'),
        (TEXT.replace('epochs=1', 'epochs=1, iters=2'), 'either epochs or iters'),
        (TEXT.replace('epochs=1', 'epochs=1, input_size=320'), 'must be height and width, got 320'),
        (TEXT.replace('epochs=1', 'epochs=1, input_size=(190, 224)'), 'multiples of 32'),
        (TEXT.replace('[0, 1]', "['0']"), 'seeds must be integers'),
        (TEXT.replace('[0, 1]', '[-1]'), 'seeds must be integers from 0 to 99'),
        (TEXT + 'block = 0', 'block must be a number of images'),
        (TEXT + "train = ['train', 'val']\ntest = ['val']", "the split 'val' is in both train and test"),
        (TEXT.replace('epochs=1', "epochs=1, minutes='3'"), 'minutes must be a positive number'),
        (TEXT.replace('epochs=1', 'epochs=1, minutes=-3'), 'minutes must be a positive number'),
        (TEXT.replace('epochs=1', 'epochs=0'), 'epochs must be a positive integer, got 0'),
        (TEXT.replace('epochs=1', "epochs='a'"), 'epochs must be a positive integer'),
        (TEXT + 'minutes = 3', "'minutes' is not part of a protocol; give minutes in each head"),
        (TEXT + 'costs = [1]', r'costs must be a dict, got \[1\]'),
        (TEXT + "published = dict(name='a')", 'published must be a list'),
        (TEXT + "costs = {'mnv4_conv_x': 2}", 'no backbone'),
        (TEXT + 'published = [1]', 'a published result needs name, value, protocol, source'),
        (TEXT + "published = [dict(name='a', value='b')]", 'has no protocol'),
        (TEXT.replace('epochs=1', 'epochs=1, size=320'), 'protocol: size of a head must be height and width, got 320'),
        (TEXT + "controls = ['distilled']", "the control 'distilled' needs a teacher"),
        (TEXT + "teacher = dict(net='mnv4_conv_m')", 'a teacher the control'),
        (TEXT + "teacher = dict(net='mnv4_conv_x')\ncontrols = ['distilled']", 'no backbone'),
        (TEXT + "teacher = dict(nets=1)\ncontrols = ['distilled']", 'nets'),
        (TEXT + "teacher = dict(net='mnv4_conv_m', start='x')\ncontrols = ['distilled']", "'x' is not one of"),
        (TEXT + "starts = ['coco']", "'coco' is not one of random, imagenet"),
        ("title = 'T'", 'has no heads'),
    ],
)
def test_mistakes_in_a_protocol(tmp_path, text, message):
    file = tmp_path / 'p.py'
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_protocol(file)
    assert str(file) in str(caught.value) or 'no backbone' in message


def append_many(path, number):
    for i in range(50):
        append_line(path, {**FAILURE, 'seed': 100 * number + i, 'error': 'x' * 5000})


def test_processes_append_whole_records(tmp_path):
    path = tmp_path / 'records.jsonl'
    processes = [multiprocessing.get_context('fork').Process(target=append_many, args=(path, i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(record['seed'] for record in read_records(path)) == sorted(
        100 * number + i for number in range(4) for i in range(50)
    )


@pytest.mark.parametrize('line', ['{', '[]', '{"head": 1}', json.dumps(RUN._asdict())])
def test_broken_records_are_refused(tmp_path, line):
    path = tmp_path / 'records.jsonl'
    path.write_text(json.dumps(FAILURE) + '\n' + line + '\n')
    with pytest.raises(UserError, match='line 2 is not a record'):
        read_records(path)


def test_a_failed_run_is_repeated_only_if_asked(tmp_path):
    path = tmp_path / 'records.jsonl'
    other = RUN._replace(seed=1)
    assert remaining(path, [RUN, other]) == [RUN, other]
    append_line(path, FAILURE)
    assert remaining(path, [RUN, other]) == [other]
    assert remaining(path, [RUN, other], retry=True) == [RUN, other]
    append_line(path, {**FAILURE, 'error': 'later'})
    (last,) = latest(read_records(path))
    assert last['error'] == 'later'


def test_records_of_another_protocol_recipe_or_data_are_kept_apart():
    others = [{**FAILURE, key: 'other'} for key in ('protocol', 'recipe', 'data')]
    assert latest([FAILURE, *others]) == [FAILURE, *others]


def test_records_of_another_recipe_are_not_taken_for_done(tmp_path):
    path, protocol = tmp_path / 'records.jsonl', read_protocol('bccd')
    append_line(path, {**FAILURE, 'protocol': 'bccd'})
    check_same(path, protocol, {RUN.head: Digests('r', 'd'), 'other': Digests('x', 'y')})
    with pytest.raises(UserError, match=r'records of lraspp with another recipe \(r, now new\): name another folder'):
        check_same(path, protocol, {RUN.head: Digests('new', 'd')})
    with pytest.raises(UserError, match='with another data'):
        check_same(path, protocol, {RUN.head: Digests('r', 'new')})
    with pytest.raises(UserError, match='has records of bccd: name another folder'):
        check_same(path, read_protocol('camvid'), {RUN.head: Digests('r', 'd')})


def test_the_last_record_of_each_run_and_weights_counts():
    first = {**FAILURE, 'error': 'first'}
    made = {key: value for key, value in FAILURE.items() if key != 'error'}
    a, b = ({**made, 'weights': dict(name='w', sha256=digest)} for digest in 'ab')
    assert latest([first, a]) == [a]
    assert latest([a, b, a]) == [a, b]
    assert latest([a, b, FAILURE]) == [a, b]  # which have been made, on another machine


def test_a_line_that_was_cut_is_no_record_and_is_replaced(tmp_path):
    path = tmp_path / 'records.jsonl'
    append_line(path, FAILURE)
    with path.open('a') as file:
        file.write('{"protocol": "x", "he')
    assert read_records(path) == [FAILURE]
    append_line(path, {**FAILURE, 'seed': 1})
    assert [record['seed'] for record in read_records(path)] == [0, 1]
    path.write_text(path.read_text().rstrip())  # a whole record without an end, of an editor
    assert len(read_records(path)) == 2
    append_line(path, {**FAILURE, 'seed': 2})
    assert [record['seed'] for record in read_records(path)] == [0, 1, 2]


def claim(folder, name, barrier, queue):
    barrier.wait()
    with claims.claimed(folder, name) as taken:
        queue.put(taken is not None)
        barrier.wait()


def test_one_of_several_processes_gets_a_claim(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier, queue = context.Barrier(4), context.Queue()
    processes = [context.Process(target=claim, args=(tmp_path, 'run', barrier, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(queue.get() for _ in processes) == [False, False, False, True]
    with claims.claimed(tmp_path, 'run') as taken:  # released
        assert taken.is_held()


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path, monkeypatch):
    path = tmp_path / 'run.claim'
    with claims.claimed(tmp_path, 'run'):
        alive = path.read_text()
    ended = multiprocessing.get_context('fork').Process(target=time.sleep, args=(0,))
    ended.start()
    ended.join()
    path.write_text(json.dumps({**json.loads(alive), 'process': ended.pid}))
    with claims.claimed(tmp_path, 'run') as taken:
        assert taken
    # A container with other process numbers, or another machine.
    path.write_text(json.dumps({**json.loads(alive), 'process': ended.pid, 'namespace': ['elsewhere']}))
    with claims.claimed(tmp_path, 'run') as taken:
        assert taken is None
    old = time.time() - claims.EXPIRY - 1
    os.utime(path, (old, old))
    with claims.claimed(tmp_path, 'run') as taken:
        assert taken
        path.write_text('{')  # of whoever has taken it over, while this process was suspended
        assert not taken.is_held()
    with claims.claimed(tmp_path, 'run') as taken:  # cut short by a full disk: it expires
        assert taken is None


def test_a_claim_is_kept_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, 'INTERVAL', 0.01)
    with claims.claimed(tmp_path, 'run'):
        path = tmp_path / 'run.claim'
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_plan_uses_measured_times(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, 'cores', lambda: 2)
    file = tmp_path / 'p.py'
    file.write_text(TEXT.replace('epochs=1', 'epochs=1, minutes=5'))
    protocol = read_protocol(file)
    *_, total = plan_lines(protocol, protocol.runs(), [], 2)
    assert total.startswith('4 runs, about 0.3 CPU hours, ')
    *_, more = plan_lines(protocol, protocol.runs(), [], 10**6)  # no faster than with all cores
    assert more.replace('with 1000000 ', 'with N ') == total.replace('with 2 ', 'with N ')
    measured = {**protocol.runs()[0]._asdict(), 'processor_minutes': 60.0}
    lines = list(plan_lines(protocol, protocol.runs()[1:], [measured], 1))
    costly = replace(protocol, costs={'timm:resnet18': 2.5})
    assert 'timm:resnet18: 2 runs (random), 150.0 min each, a guess' in next(
        plan_lines(costly, protocol.runs()[1:], [measured], 1)
    )
    assert lines[0] == 'a timm:resnet18: 2 runs (random), 60.0 min each, a guess'
    assert lines[1] == 'a mnv4_conv_s: 1 run (random), 60.0 min each'
    assert lines[-1] == '3 runs, about 3.0 CPU hours'
    assert list(plan_lines(protocol, [], [measured], 1)) == ['no runs remain: all have records']


def test_the_plan_counts_a_teacher_until_it_is_trained():
    protocol = read_protocol('distillation-bccd')
    (head,), runs = protocol.heads, protocol.runs()
    distilled = [run for run in runs if run.control == 'distilled']
    assert list(plan_lines(protocol, distilled, [], 1))[-1].startswith(f'{len(distilled) + 1} runs')
    done = {**distilled[0]._asdict(), 'processor_minutes': 1.0, 'teacher': dict(net='x'), 'head': head}
    assert list(plan_lines(protocol, distilled[1:], [done], 1))[-1].startswith(f'{len(distilled) - 1} runs')
