"""Nets of a supernet that are trained alone, and how well the scores of the supernet rank them."""

import json
import re
import shutil

import numpy as np
import pytest
from filelock import FileLock
from mmengine.config import Config
from scipy import stats

from mnv4_mm.apis.model import load_model
from mnv4_mm.child_processes import Children
from mnv4_mm.cli import main
from mnv4_mm.models.space import SMALL, at_scale
from mnv4_mm.search import rank
from mnv4_mm.search.rank import Plan, Ranked, Ranking, _train_alone, kendall
from mnv4_mm.search.records import RANKED
from mnv4_mm.search.score import Scorer
from mnv4_mm.weights.checkpoint import read_checkpoint
from mnv4_mm.weights.work_dir import list_checkpoints

DETECTOR, SEGMENTER = 'mnv4_ssdlite_coco-mini', 'mnv4_lraspp_ade20k-mini'


def test_kendall_counts_pairs_in_the_same_order():
    generator = np.random.default_rng(0)
    shared = generator.uniform(0, 1, 12)
    alone = shared + generator.normal(0, 0.3, 12)
    nets = [
        Ranked((i,), *pair, gmacs=float(-i), size=(192, 224) if i < 10 else (96, 128))
        for i, pair in enumerate(zip(shared, alone, strict=True))
    ]
    tau, (low, high) = kendall(nets)
    assert tau == pytest.approx(mean_sign(nets))
    assert -1 <= low < tau < high <= 1
    lines = Ranking('mIoU', tuple(nets)).lines()
    assert lines[2].startswith(f'| {max(alone):.4f} |')
    assert lines[-3].startswith(f'Kendall tau of 12 nets: {tau:.2f}, 95 % interval')
    within = (45 * mean_sign(nets[:10]) + mean_sign(nets[10:])) / 46
    assert kendall(nets, within_sizes=True)[0] == pytest.approx(within)
    assert lines[-2].startswith(f'46 pairs of the same input size only: {within:.2f}, 95 % interval')
    assert lines[-2].partition(': ')[2] != lines[-3].partition(': ')[2]
    macs_tau = mean_sign([net._replace(shared=-i) for i, net in enumerate(nets)])
    assert lines[-1].startswith(f'with GMACs instead of scores in the supernet: {macs_tau:.2f}, 95 % interval')
    same = Ranking('mIoU', tuple(net._replace(shared=0.0) for net in nets))
    assert same.lines()[-3] == 'Kendall tau of 12 nets: not defined, one of the two scores is equal in all pairs'
    assert same.lines()[-2].endswith('not defined, one of the two scores is equal in all pairs')
    others = Ranking('mIoU', tuple(net._replace(size=(32, 32 + i)) for i, net in enumerate(nets)))
    assert others.lines()[-2].endswith('0 pairs of the same input size only: not defined, there are no such pairs')
    assert Ranking('mIoU', tuple(nets[:5])).lines()[-3].endswith('no interval of so few pairs')
    few = Ranking('mIoU', tuple(net._replace(size=(32, 32 * (i // 2))) for i, net in enumerate(nets[:6])))
    assert re.search(r'^3 pairs of the same input size only: .*, no interval of so few pairs$', few.lines()[-2])


def test_kendall_counts_ties_as_scipy():
    pairs = np.random.default_rng(0).integers(0, 4, (20, 2))
    nets = [Ranked((i,), *map(float, pair), gmacs=0.1, size=(96, 128)) for i, pair in enumerate(pairs)]
    assert kendall(nets)[0] == pytest.approx(stats.kendalltau(*pairs.T).statistic)
    assert kendall(nets, within_sizes=True) == kendall(nets)


@pytest.mark.parametrize(
    ('name', 'metric', 'length', 'columns'),
    [
        ('bccd', 'bbox_mAP', dict(epochs=8, iters=None), ['{ms:.2f}', '{measured_ms:.2f}']),
        ('camvid', 'mIoU', dict(epochs=None, iters=500), ['{gmacs:.4f}', '{measured_ms:.2f}']),
    ],
)
def test_the_page_has_the_results_of_its_records(name, metric, length, columns, repository):
    page = (repository / 'docs/search.md').read_text()
    folder = repository / f'docs/results/search-{name}'
    about, known = read_ranked(folder / RANKED)
    assert about.items() >= length.items()
    for line in Ranking(metric, tuple(known[genes] for genes in rank.choose_nets(SMALL, 20))).lines()[-3:]:
        assert line in page
    trained = [json.loads(line) for line in (folder / 'tuned.jsonl').read_text().splitlines()]
    for net in dict.fromkeys(record['net'] for record in trained):
        records = [record for record in trained if record['net'] == net]
        scores = [100 * record[metric] for record in records]
        costs = ' | '.join(columns).format(**records[0])
        shared = f'{100 * records[0]["shared"]:.1f}'
        assert f'| {net} | {costs} | {shared} | {np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} |' in page


def read_ranked(path):
    """Return the first line of a file of ``mnv4 search rank``, and the nets by their genes."""
    about, *lines = map(json.loads, path.read_text().splitlines())
    return about, {tuple(line['genes']): Ranked(**{**line, 'size': tuple(line['size'])}) for line in lines}


def test_the_page_has_the_agreement_of_two_seeds(repository):
    page = (repository / 'docs/search.md').read_text()
    folder = repository / 'docs/results/search-bccd'
    _, known = read_ranked(folder / RANKED)
    about, *lines = map(json.loads, (folder / 'ranked-seed-1.jsonl').read_text().splitlines())
    assert (about['epochs'], about['seed']) == (8, 1)
    again = {tuple(line['genes']): line['alone'] for line in lines}
    seeds = [net._replace(shared=again[genes]) for genes, net in known.items()]
    for within in (False, True):
        tau, (low, high) = kendall(seeds, within_sizes=within)
        assert f'{tau:.2f} ({low:.2f} to {high:.2f})' in page


def test_the_page_has_the_errors_of_the_predicted_latencies(repository):
    page = (repository / 'docs/search.md').read_text()
    path = repository / 'docs/results/search-bccd/latency.jsonl'
    for measured in map(json.loads, path.read_text().splitlines()):
        errors = [100 * abs(net['predicted'] / net['ms'] - 1) for net in measured['checked']]
        assert len(errors) == 50
        name = {'onnx': 'ONNX Runtime', 'openvino': 'OpenVINO', 'litert': 'LiteRT'}[measured['runtime']]
        assert f'| {name} | {np.median(errors):.1f} % | {np.percentile(errors, 95):.1f} % |' in page


def test_nets_alone_have_ordinary_codes_of_boxes(supernet, tmp_path):
    scorer = Scorer(supernet(DETECTOR), 4)
    written = []

    class NoChildren:
        def run(self, _, task, *__):
            written.append(Config.fromfile(json.loads(task)['config']))
            return 0

    for number in range(len(scorer.space.scales)):
        genes = at_scale(scorer.space.smallest(), number)
        _train_alone(scorer, genes, Plan(3, 1, None), tmp_path, 1, NoChildren())
    heads = [cfg.model.bbox_head for cfg in written]
    assert [head.bbox_coder for head in heads] == [scorer.cfg.model.bbox_head.bbox_coder] * 3
    assert len({head.anchor_generator.min_sizes[0] for head in heads}) == 3


def mean_sign(nets):
    """Kendall's tau of nets without ties: the mean over all pairs of +1 if both scores have one order, else -1."""
    return np.mean([np.sign((a.shared - b.shared) * (a.alone - b.alone)) for i, a in enumerate(nets) for b in nets[:i]])


def test_nets_are_trained_alone_and_scored_both_ways(supernet, tmp_path, monkeypatch, capsys):
    checkpoint = supernet(SEGMENTER)
    command = ['search', 'rank', str(checkpoint), '--nets', '3', '--iters', '2', '--workers', '2', '--images', '6']
    command += ['--out', str(tmp_path)]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert '3 of 3 nets' in output
    about, *lines = map(json.loads, (tmp_path / RANKED).read_text().splitlines())
    assert about['iters'] == 2
    assert about['epochs'] is None
    scorer = Scorer(checkpoint, 6)
    # Images and masks are read as in training: rotated, and without values that wrap around at 256.
    assert {type(one).__name__ for one in scorer._pipelines[0].transforms} >= {'LoadImage', 'LoadMask'}
    assert sorted(tuple(line['genes']) for line in lines) == sorted(rank.choose_nets(scorer.space, 3))
    line = lines[0]
    path, *_ = list_checkpoints(tmp_path / f'net_{"".join(map(str, line["genes"]))}' / 'run')
    model = load_model(path, device='cpu')
    assert model.cfg.randomness.seed == 0
    assert 'load_from' not in model.cfg or model.cfg.load_from is None
    assert model.cfg.train_dataloader.held_out == scorer.cfg.train_dataloader.held_out
    assert read_checkpoint(path).meta['iter'] == 2
    assert line['shared'] == pytest.approx(scorer.score(line['genes']), abs=1e-6)
    assert line['alone'] == pytest.approx(scorer.score_model(model, line['genes']), abs=1e-6)
    # Killed in the middle of a line: only that net is trained again.
    text = (tmp_path / RANKED).read_text()
    (tmp_path / RANKED).write_text(text[:-9])
    trained = []
    kept = shutil.copytree(tmp_path / f'net_{"".join(map(str, lines[-1]["genes"]))}', tmp_path / 'kept')

    def run(children, module, task, *_):
        trained.append(json.loads(task))
        shutil.copytree(kept / 'run', trained[-1]['work_dir'], dirs_exist_ok=True)
        return 0

    monkeypatch.setattr(Children, 'run', run)
    assert main(command) == 0
    assert (tmp_path / RANKED).read_text() == text
    assert [one['work_dir'] for one in trained] == [
        str(tmp_path / f'net_{"".join(map(str, lines[-1]["genes"]))}' / 'run')
    ]
    assert trained[0]['resume']  # the training had ended, but had no record
    assert main([*command[:-1], str(tmp_path), '--seed', '1']) == 2
    assert 'was made with another --seed' in capsys.readouterr().err
    with FileLock(tmp_path / f'.{RANKED}.use.lock'):
        assert main(command) == 2
    assert 'another process ranks nets' in capsys.readouterr().err
    # Without the records, trainings with another seed are not taken for these.
    (tmp_path / RANKED).unlink()
    trained.clear()
    assert main([*command[:-1], str(tmp_path), '--seed', '1']) == 0
    assert [one['resume'] for one in trained] == [False] * 3


def test_a_training_that_has_ended_is_not_repeated(supernet, tmp_path):
    checkpoint, plan = supernet(SEGMENTER), Plan(3, None, 2, images=6)
    scorer = Scorer(checkpoint, 6)
    (genes, *_) = rank.choose_nets(scorer.space, 1)
    folder = rank._train_alone(scorer, genes, plan, tmp_path, 1, Children())
    path, *_ = list_checkpoints(folder)
    before = path.stat().st_mtime_ns
    assert rank._train_alone(scorer, genes, plan, tmp_path, 1, Children()) == folder
    assert path.stat().st_mtime_ns == before
    (tmp_path / folder.parent / 'net.py').write_text('x = 1')  # of another supernet
    rank._train_alone(scorer, genes, plan, tmp_path, 1, Children())
    assert path.stat().st_mtime_ns > before


def test_a_training_that_fails_is_one_line(supernet, tmp_path, monkeypatch, capsys):
    real = Children.run
    monkeypatch.setattr(Children, 'run', lambda self, _, *rest: real(self, 'mnv4_mm.search.nothing', *rest))
    command = ['search', 'rank', str(supernet(SEGMENTER)), '--nets', '3', '--iters', '2', '--out', str(tmp_path)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert 'has failed: exit code 1: ' in error
    assert 'No module named mnv4_mm.search.nothing' in error
    assert error.count('\n') == 1
    assert (tmp_path / RANKED).read_text().count('\n') == 1
