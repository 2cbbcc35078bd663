"""The front of score and cost, how nets are asked for, and the command."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from stub_checkpoint import write_stub_checkpoint

from mnv4_mm.cli import main
from mnv4_mm.errors import UserError
from mnv4_mm.models.space import SMALL
from mnv4_mm.search.front import Front, Scored, find_front, read_cost, read_front, write_front
from mnv4_mm.search.plot import write_plot
from mnv4_mm.search.run import DRAWS, POPULATION, Plan, ask, reward


def some(count, seed=0):
    generator = random.Random(seed)
    return [Scored((i,), generator.randrange(20) / 20, generator.randrange(20) / 20) for i in range(count)]


def test_a_front_has_the_nets_that_no_other_beats():
    nets = some(200)
    front = find_front(nets)
    for one in nets:
        beaten = any(other.score >= one.score and other.cost <= one.cost and other[1:] != one[1:] for other in nets)
        assert any(net[1:] == one[1:] for net in front) != beaten
    assert sorted(front, key=lambda net: net.cost) == sorted(front, key=lambda net: net.score) == list(front)
    assert find_front([]) == ()


@pytest.fixture
def front(tmp_path):
    supernet = tmp_path / 'supernet.pth'
    write_stub_checkpoint(supernet)
    from mnv4_mm.digest import file_digest

    nets = (Scored((0, 0), 0.25, 0.1), Scored((1, 1), 0.5, 0.2))
    return Front(supernet, file_digest(supernet).hexdigest(), 'mIoU', 40, dict(nets=2), nets, ((96, 128), (160, 224)))


def test_a_front_survives_its_file(front, tmp_path):
    write_front(front, tmp_path / 'front.json')
    assert read_front(tmp_path / 'front.json') == front
    assert front.choose(0.15) == front.choose(0.1) == front.nets[0]
    assert front.choose(7) == front.nets[1]
    assert list(front.lines())[2:] == ['| 0.1000 | 0.2500 | 128x96 |', '| 0.2000 | 0.5000 | 224x160 |']
    named = front._replace(
        baselines=(('mnv4_conv_s', Scored((1, 0), 0.375, 0.15)), ('small', Scored((0, 0), 0.1, 0.01)))
    )
    write_front(named, tmp_path / 'front.json')
    assert read_front(tmp_path / 'front.json') == named
    assert list(named.lines())[4:] == [
        'mnv4_conv_s: mIoU 0.3750 at 0.1500 GMACs; the best net within this cost has 0.2500',
        'small: mIoU 0.1000 at 0.0100 GMACs; all nets cost more',
    ]
    exact = front._replace(nets=(Scored((0, 1), 0.25, 0.20463), Scored((1, 1), 0.5, 0.210474)))
    for line, net in zip(list(exact.lines())[2:], exact.nets, strict=True):
        assert exact.choose(float(line.split('|')[1])) == net  # what is printed can be chosen
    assert front.find_supernet(tmp_path / 'front.json') == front.supernet
    with pytest.raises(UserError, match=r'the cheapest net of the front has 0\.1000 GMACs'):
        front.choose(0.05)
    copied = tmp_path / 'elsewhere/search/front.json'
    copied.parent.mkdir(parents=True)
    beside = Path(shutil.copy(front.supernet, copied.parent.parent))
    write_stub_checkpoint(front.supernet, dict(epoch=1))
    assert front.find_supernet(copied) == beside
    with pytest.raises(UserError, match='has been replaced'):
        front.find_supernet(tmp_path / 'front.json')
    front.supernet.unlink()
    with pytest.raises(UserError, match='is missing'):
        front.find_supernet(tmp_path / 'front.json')


def test_a_front_in_ms(front, tmp_path):
    path = tmp_path / 'front.json'
    write_front(front._replace(unit='ms', nets=(Scored((0, 1), 0.25, 10.0), Scored((1, 1), 0.5, 12.5))), path)
    slow = read_front(path)
    assert next(slow.lines()) == '| ms | mIoU | input |'
    for text in ('12', '12ms', ' 12 MS', '1.2e1ms'):
        assert slow.choose(read_cost('--choose', text, slow.unit)).cost == 10.0
    with pytest.raises(UserError, match='--choose 12GMACs: the costs are in ms here'):
        read_cost('--choose', '12GMACs', slow.unit)
    with pytest.raises(UserError, match=r'the cheapest net of the front has 10\.0000 ms'):
        slow.choose(9)


def test_a_plot_has_the_baseline(front, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, **_: drawn.append(figure) or Path(path).touch())
    random_nets = front._replace(plan=dict(engine='random', nets=20))
    other_table = random_nets._replace(plan=random_nets.plan | dict(latency=dict(runtime='litert')))
    others = (random_nets._replace(unit='ms'), random_nets._replace(images=7), other_table)
    for baseline in (None, random_nets, *others):
        write_plot(front._replace(plan=dict(engine='nsga2', nets=30)), baseline, tmp_path / 'x.png')
    names = [[line.get_label() for line in figure.axes[0].lines] for figure in drawn]
    ours, baseline = 'nsga2, 30 nets asked for', 'random, 20 nets asked for'
    assert names == [[ours], [ours, baseline], [ours], [ours], [ours]]


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"nets": [{"genes": 1}]}', '{"nets": []}', 'null'])
def test_another_file_is_no_front(text, tmp_path):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(UserError, match='is not a front'):
        read_front(tmp_path / 'x.json')


def cost(genes):
    return sum((index + 1) * gene for index, gene in enumerate(genes)) / 100


def score(genes):
    """A score that grows with the cost, but not for all variables alike."""
    return sum(gene * (index % 3) for index, gene in enumerate(genes)) / 100


def run(engine, nets=400, seed=0, limit=None, scale=1.0):
    found = []

    def scored(nets):
        return [Scored(genes, scale * score(genes), cost(genes)) for genes in nets]

    for generation in ask(SMALL, Plan(engine, nets, seed, limit, 10), cost, scored):
        assert len(generation) <= POPULATION
        found += generation
    return found


def area(nets):
    """Return the area that a front dominates, up to the cost of the largest net."""
    largest, total, front = cost(SMALL.largest()), 0.0, find_front(nets)
    for net, after in zip(front, [*(one.cost for one in front[1:]), largest], strict=True):
        total += net.score * (after - net.cost)
    return total


def test_nsga2_finds_more_than_random_nets():
    pytest.importorskip('optuna')
    gain = [area(run('nsga2', seed=seed)) - area(run('random', seed=seed)) for seed in range(3)]
    assert min(gain) > 0.02 * area(run('random'))


def test_given_nets_are_in_the_first_generation():
    pytest.importorskip('optuna')
    given = (SMALL.largest(), SMALL.smallest())
    plan = Plan('nsga2', 60, 0, None, 10)

    def scored(nets):
        return [Scored(genes, score(genes), cost(genes)) for genes in nets]

    first = next(ask(SMALL, plan, cost, scored, first=given))
    assert tuple(net.genes for net in first[:2]) == given


def test_nsga2_starts_from_random_nets_and_breeds_them():
    """Random nets leave out half of the rows that they may leave out. Nets that Optuna draws leave out a tenth."""
    pytest.importorskip('optuna')
    first, second = (run('nsga2', 2 * POPULATION)[i * POPULATION : (i + 1) * POPULATION] for i in range(2))
    assert first == run('random', POPULATION)

    def rows(nets):
        return np.mean([sum(map(len, SMALL.subnet(net.genes).rows)) for net in nets])

    largest, smallest = (sum(map(len, SMALL.subnet(genes).rows)) for genes in (SMALL.largest(), SMALL.smallest()))
    assert rows(first) == pytest.approx((largest + smallest) / 2, abs=1)
    assert rows(second) < (largest + rows(first)) / 2


@pytest.mark.parametrize('engine', ['nsga2', 'random', 'tunas'])
def test_a_seed_gives_the_same_nets(engine):
    pytest.importorskip('optuna')
    limit = 2.0 if engine == 'tunas' else None
    assert run(engine, 120, limit=limit) == run(engine, 120, limit=limit)
    assert run(engine, 120, limit=limit) != run(engine, 120, seed=1, limit=limit)
    # A search for more nets begins with those of a shorter one.
    assert run(engine, 170, limit=limit)[: len(run(engine, 100, limit=limit))] == run(engine, 100, limit=limit)


@pytest.mark.parametrize('engine', ['nsga2', 'random'])
def test_nets_above_the_limit_are_not_scored(engine):
    pytest.importorskip('optuna')
    limit = cost(SMALL.largest()) / 3
    found = run(engine, 300, limit=limit)
    assert found
    assert all(net.cost <= limit for net in found)
    if engine == 'nsga2':
        random_nets = run('random', 300, limit=limit)
        assert area(found) > area(random_nets)
        assert len(random_nets) > 250  # most of those above the limit are replaced
        # Random nets, with which the search begins, are all above this one.
        limit = 0.99 * min(net.cost for net in run('random', 600 * DRAWS))
        assert not run('random', 600, limit=limit)
        assert len(run('nsga2', 600, limit=limit)) > 50


def test_tunas_finds_the_cost_that_it_prefers():
    pytest.importorskip('optuna')
    target = cost(SMALL.largest()) / 2
    assert reward(Scored((), 0.5, target), target) == 0.5
    assert reward(Scored((), 0.5, 2 * target), target) == pytest.approx(0.43)
    assert reward(Scored((), 0.5, target / 2), target) == pytest.approx(0.465)
    # From the target on, a higher score costs more than it is worth.
    best = max(run('tunas', 600, limit=target, scale=0.02), key=lambda net: reward(net, target))
    assert abs(best.cost / target - 1) < 0.1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['search', 'run', '{tmp}/a.pth', '--nets', '0'], '--nets must be at least 1, got 0'),
        (['search', 'run', '{tmp}/a.pth', '--seed', str(2**32)], '--seed must be from 0 to 2**32 - 1'),
        (['search', 'rank', '{tmp}/a.pth', '--iters', '1', '--seed', '-1'], '--seed must be from 0 to 2**32 - 1'),
        (['search', 'run', '{tmp}/a.pth', '--engine', 'tunas'], '--engine tunas needs --limit'),
        (['search', 'run', '{tmp}/a.pth', '--limit', 'nan'], '--limit must be positive and finite, got nan'),
        (['search', 'run', '{tmp}/a.pth', '--limit', '12ms'], '--limit 12ms: the costs are in GMACs here, not in ms'),
        (['search', 'profile', '{tmp}/a.pth', '--measured', '{tmp}/x'], '--measured needs --browser'),
        (['search', 'profile', '{tmp}/a.pth', '--browser', '{tmp}/x', '--threads', '2'], 'leave out --threads'),
        (['search', 'export', '{tmp}/front.json', '--choose', '12ms'], '--choose 12ms: the costs are in GMACs here'),
        (['search', 'export', '{tmp}/no.json', '--choose', '1'], 'no front'),
        (['search', 'export', '{tmp}/front.json', '--choose', '0.01'], 'the cheapest net'),
        (['search', 'export', '{tmp}/front.json', '--choose', '1', '--out', '{tmp}/x.txt'], 'ends in .pth'),
        (['search', 'train', 'mnv4_ssdlite_coco', '--space', 'huge'], '--space'),
    ],
)
def test_a_mistake_is_one_line(arguments, message, front, tmp_path, capsys):
    write_front(front, tmp_path / 'front.json')
    write_stub_checkpoint(tmp_path / 'a.pth')
    assert main([argument.replace('{tmp}', str(tmp_path)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert 'Traceback' not in error
    assert json.loads((tmp_path / 'front.json').read_text())['metric'] == 'mIoU'
