"""Each command of a search, killed at random moments and given again, ends as one that was not."""

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import kills
import pytest
from end_to_end import IN_PROCESS

from mnv4_mm.search.records import RANKED, SCORED

CONFIG = 'mnv4_lraspp_ade20k-mini'
OPTIONS = {
    **IN_PROCESS,
    'train_dataloader.batch_size': 2,
    'val_dataloader.dataset.indices': 2,
    'default_hooks.checkpoint.interval': 1,
    'randomness.seed': 7,
}
DELAYS = random.Random(0)


def command(*arguments: object) -> list[str]:
    return [sys.executable, '-m', 'mnv4_mm', 'search', *map(str, arguments)]


def finish(arguments: list[str]) -> None:
    """Run a command to its end."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def run(*arguments: object) -> None:
    finish(command(*arguments))


def kill(folder: Path, pattern: str, arguments: list[str]) -> None:
    """Start a command, and kill it soon after its first progress: after a file of ``folder`` has grown or appeared.

    Only the process of the command is killed; the processes that it has started must notice.
    """
    before, deadline = sizes(folder, pattern), time.monotonic() + 300
    with TemporaryFile('w+') as output, subprocess.Popen(arguments, stdout=output, stderr=output) as process:
        while process.poll() is None and sizes(folder, pattern) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(DELAYS.uniform(0, 0.2))
        code, children, after = process.poll(), descendants(process.pid), sizes(folder, pattern)
        process.kill()
        output.seek(0)
        # Otherwise it had ended before it could be killed.
        assert code is None, f'exit code {code}: {output.read()[-3000:]}'
    assert after != before
    deadline = time.monotonic() + 60
    while running := [child for child in children if is_running(child)]:
        assert time.monotonic() < deadline, f'{running} still run'
        time.sleep(0.1)


def descendants(process: int) -> list[int]:
    """Return the processes that a process and its children have started."""
    found = []
    for task in Path(f'/proc/{process}/task').glob('*/children'):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def kill_and_repeat(folder: Path, patterns: Sequence[str], *arguments: object, again: tuple[str, ...] = ()) -> None:
    """Kill ``mnv4 search`` after some progress, repeat it, and let it end.

    Args:
        folder: See ``kill``.
        patterns: See ``kill``, one for each kill.
        *arguments: Arguments of the command.
        again: Further arguments when it is repeated.
    """
    for number, pattern in enumerate(patterns):
        kill(folder, pattern, command(*arguments, *(again if number else ())))
    run(*arguments, *again)


def sizes(folder: Path, pattern: str) -> dict[Path, int]:
    found = {}
    for path in folder.rglob(pattern):
        with contextlib.suppress(FileNotFoundError):  # a temporary file
            found[path] = path.stat().st_size
    return found


def lines(path: Path) -> list[dict]:
    """Return the lines of records that are whole: a kill may cut off one."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')]


@pytest.fixture(scope='module')
def supernet(once, drawn_masks):
    """The supernet of a run that was not killed."""
    folder = once('killed search', lambda out: run('train', *training(drawn_masks), '--work-dir', out))
    return folder / 'iter_12.pth'


def training(data: Path) -> list[object]:
    options = ['--cfg-options', *(f'{key}={value}' for key, value in OPTIONS.items())]
    return [CONFIG, '--data', data, '--iters', 12, *options]


def test_train(supernet, drawn_masks, tmp_path):
    arguments = ['train', *training(drawn_masks), '--work-dir', tmp_path]
    kill_and_repeat(tmp_path, ['iter_*.pth'] * 2, *arguments, again=('--resume',))
    assert kills.differences(supernet, tmp_path / 'iter_12.pth') == []


def test_profile(supernet, tmp_path):
    """Latencies differ from run to run, but each is measured once, and the tables are of the same blocks and nets."""
    whole, killed = tmp_path / 'whole/latency.json', tmp_path / 'killed/latency.json'
    for path in (whole, killed):
        path.parent.mkdir()
    arguments = ['profile', supernet, '--nets', 4, '--blocks', 6, '--check', 3, '--out']
    run(*arguments, whole)
    kill_and_repeat(killed.parent, ['*.onnx', 'latency.jsonl'], *arguments, killed)
    measured = [
        [(line['item'], line['round']) for line in lines(path.with_suffix('.jsonl'))[1:]] for path in (whole, killed)
    ]
    assert len(measured[1]) == len(set(measured[1]))
    assert sorted(measured[0]) == sorted(measured[1])
    tables = [json.loads(path.read_text()) for path in (whole, killed)]
    assert tables[0].keys() == tables[1].keys()
    assert not killed.with_suffix('.files').exists()


@pytest.mark.parametrize('engine', ['nsga2', 'random'])
def test_run(supernet, tmp_path, engine):
    arguments = ['run', supernet, '--engine', engine, '--nets', 60, '--images', 8, '--workers', 2, '--out']
    run(*arguments, tmp_path / 'whole')
    kill_and_repeat(tmp_path / 'killed', [SCORED] * 2, *arguments, tmp_path / 'killed')
    fronts = [json.loads((tmp_path / name / f'front-{engine}.json').read_text()) for name in ('whole', 'killed')]
    assert fronts[0] == fronts[1]
    genes = [tuple(line['genes']) for line in lines(tmp_path / 'killed' / SCORED)[1:]]
    assert len(genes) == len(set(genes))


def test_rank(supernet, tmp_path):
    arguments = ['rank', supernet, '--nets', 3, '--iters', 4, '--images', 8, '--workers', 2, '--out']
    run(*arguments, tmp_path / 'whole')
    kill_and_repeat(tmp_path / 'killed', ['iter_*.pth'] * 2, *arguments, tmp_path / 'killed')
    ranked = [sorted(map(json.dumps, lines(tmp_path / name / RANKED))) for name in ('whole', 'killed')]
    assert ranked[0] == ranked[1]


def test_export(supernet, tmp_path):
    """The training that follows an export can be continued."""
    found = tmp_path / 'found'
    run('run', supernet, '--engine', 'random', '--nets', 2, '--images', 8, '--out', found)
    arguments = ['export', found / 'front-random.json', '--choose', 'mnv4_conv_s', '--iters', 8, '--out']
    whole, killed = (tmp_path / name / 'net.pth' for name in ('whole', 'killed'))
    for path in (whole, killed):
        path.parent.mkdir()
    run(*arguments, whole)
    kill(killed.parent, 'iter_*.pth', command(*arguments, killed))
    again = [sys.executable, '-m', 'mnv4_mm', 'train', str(killed.with_suffix('.py')), '--iters', '8']
    again += ['--work-dir', str(killed.with_suffix('')), '--resume']
    kill(killed.parent, 'iter_*.pth', again)
    finish(again)
    last = 'net/iter_8.pth'
    assert kills.differences(whole.parent / last, killed.parent / last) == []
