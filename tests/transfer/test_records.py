"""Protocols, claims, records and plans of transfer runs: without any training."""

import json
import multiprocessing
import os
import time

import pytest

from mnv4_mm.errors import UserError
from mnv4_mm.transfer import claims
from mnv4_mm.transfer.estimate import plan_lines
from mnv4_mm.transfer.protocol import Run, protocol_index, read_protocol, select
from mnv4_mm.transfer.records import append_record, latest, read_records
from mnv4_mm.transfer.work import remaining

RUN = Run('lraspp', 'mnv4_conv_s', 'random', '', 0)
FAILURE = {'protocol': 'x', **RUN._asdict(), 'error': 'reason'}
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
    file.write_text(f"{TEXT}starts = ['random', 'imagenet']\nimagenet = ['timm:resnet18']\ncontrols = ['twin']\n")
    runs = read_protocol(file).runs()
    assert len(runs) == 2 * (3 + 1)  # seeds x (two nets from random weights, one from ImageNet's, and the twin)
    assert [run.seed for run in runs if run.control] == [100, 101]
    assert [run.net for run in select(runs, starts=['imagenet'], seeds=[1])] == ['timm:resnet18']
    with pytest.raises(UserError, match='--nets: mnv4_conv_l is not of this protocol; near: mnv4_conv_s'):
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
        (TEXT.replace('[0, 1]', "['0']"), 'seeds must be integers'),
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
        append_record(path, {**FAILURE, 'seed': 100 * number + i, 'error': 'x' * 5000})


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
    append_record(path, FAILURE)
    assert remaining(path, [RUN, other]) == [other]
    assert remaining(path, [RUN, other], retry=True) == [RUN, other]
    append_record(path, {**FAILURE, 'error': 'later'})
    assert latest(read_records(path))[RUN]['error'] == 'later'


def claim(folder, name, barrier, queue):
    barrier.wait()
    with claims.claimed(folder, name) as is_mine:
        queue.put(is_mine)
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
    with claims.claimed(tmp_path, 'run') as is_mine:  # released
        assert is_mine


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path, monkeypatch):
    path = tmp_path / 'run.claim'
    with claims.claimed(tmp_path, 'run'):
        alive = path.read_text()
    ended = multiprocessing.get_context('fork').Process(target=time.sleep, args=(0,))
    ended.start()
    ended.join()
    path.write_text(json.dumps({**json.loads(alive), 'process': ended.pid}))
    with claims.claimed(tmp_path, 'run') as is_mine:
        assert is_mine
    path.write_text(json.dumps({**json.loads(alive), 'host': 'elsewhere'}))
    with claims.claimed(tmp_path, 'run') as is_mine:
        assert not is_mine
    old = time.time() - claims.EXPIRY - 1
    os.utime(path, (old, old))
    with claims.claimed(tmp_path, 'run') as is_mine:
        assert is_mine


def test_a_claim_is_kept_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, 'INTERVAL', 0.01)
    with claims.claimed(tmp_path, 'run'):
        path = tmp_path / 'run.claim'
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_plan_uses_measured_times(tmp_path):
    file = tmp_path / 'p.py'
    file.write_text(TEXT + 'minutes = 5')
    protocol = read_protocol(file)
    *_, total = plan_lines(protocol, protocol.runs(), [], 2)
    assert total == '4 runs, about 0.3 CPU hours, 0.2 h with 2 at the same time'
    measured = {**protocol.runs()[0]._asdict(), 'processor_minutes': 60.0}
    lines = list(plan_lines(protocol, protocol.runs()[1:], [measured], 1))
    assert lines[0] == 'a timm:resnet18: 2 runs (random), 60.0 min each, a guess'
    assert lines[1] == 'a mnv4_conv_s: 1 runs (random), 60.0 min each'
    assert lines[-1] == '3 runs, about 3.0 CPU hours'
