"""A search in a supernet that was trained for seconds: scores, records, and the net that is written."""

import copy
import json
import os
import shutil

import numpy as np
import pytest
import torch
from end_to_end import IN_PROCESS

from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.cli import main
from mnv4_mm.data.held_out import is_held_out
from mnv4_mm.errors import UserError
from mnv4_mm.search.front import read_front
from mnv4_mm.search.records import SCORED
from mnv4_mm.search.run import Plan, search
from mnv4_mm.search.score import Scorer, _batches, _resized
from mnv4_mm.weights.checkpoint import read_checkpoint

DETECTOR, SEGMENTER = 'mnv4_ssdlite_coco-mini', 'mnv4_lraspp_ade20k-mini'


def test_held_out_images_are_a_share_and_follow_from_their_names():
    names = [f'images/{i:05}.jpg' for i in range(10_000)]
    held_out = {name for name in names if is_held_out(name, 0.2)}
    assert len(held_out) == pytest.approx(2000, abs=5 * (10_000 * 0.2 * 0.8) ** 0.5)
    assert 0 < sum(is_held_out(f'{i}/image.jpg', 0.5) for i in range(100)) < 100  # folders count
    assert not any(is_held_out(name, 0.0) for name in names)
    assert all(is_held_out(name, 1.0) for name in names)


def test_a_net_gets_its_own_statistics(supernet):
    """They are the means over batches that numpy computes from the inputs of a norm."""
    scorer = Scorer(supernet(SEGMENTER))
    model, _ = scorer.model(scorer.space.smallest())
    norm, inputs = model.backbone.bn1, []
    norm.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].double().numpy()))
    with torch.no_grad():
        for batch in scorer.images_for(scorer.space.smallest()).calibration:
            data = model.data_preprocessor(copy.deepcopy(batch), False)
            model(data['inputs'], data['data_samples'], mode='tensor')
    means = np.mean([x.mean(axis=(0, 2, 3)) for x in inputs], axis=0)
    variances = np.mean([x.var(axis=(0, 2, 3), ddof=1) for x in inputs], axis=0)
    np.testing.assert_allclose(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var, variances, rtol=1e-4)
    assert not any(module.training for module in model.modules())
    assert norm.momentum == pytest.approx(0.1)


def test_too_few_images_are_refused_before_training(drawn, tmp_path):
    options = {**IN_PROCESS, 'train_dataloader.dataset.indices': 1}
    with pytest.raises(UserError, match=r'of the 1 training images would be held out to score nets'):
        train(SEGMENTER, data=str(drawn), space='small', work_dir=str(tmp_path / 'w'), iters=1, cfg_options=options)


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTER])
def test_a_score_is_that_of_the_ordinary_net(name, supernet, tmp_path, capsys):
    """The net is written with its own statistics; evaluated as any checkpoint, it has the score of the search."""
    scorer = Scorer(supernet(name))
    genes = scorer.space.smallest()
    before = copy.deepcopy(scorer._state)
    score = scorer.score(genes)
    assert scorer.score(scorer.space.largest()) != score == scorer.score(genes)
    assert all(torch.equal(value, before[key]) for key, value in scorer._state.items())
    front = tmp_path / 'front.json'
    net = dict(genes=list(genes), score=score, cost=scorer.macs(genes) / 1e9)
    about = dict(supernet=str(supernet(name)), sha256=scorer.checkpoint.sha256, metric=scorer.metric, images=1, plan={})
    about |= dict(unit='GMACs', sizes=scorer.sizes, baselines={'mnv4_conv_s x 0.75': net})
    front.write_text(json.dumps({**about, 'nets': [net]}))
    assert main(['search', 'export', str(front), '--choose', 'mnv4_conv_s x 0.75']) == 0
    baseline = read_checkpoint(tmp_path / 'net_mnv4_conv_s_x_0.75.pth')
    assert baseline.meta['supernet']['genes'] == list(genes)
    assert main(['search', 'export', str(front), '--choose', 'mnv4_conv_m']) == 2
    assert 'the front has no baseline mnv4_conv_m, only mnv4_conv_s x 0.75' in capsys.readouterr().err
    assert main(['search', 'export', str(front), '--choose', '1', '--out', str(tmp_path / 'net.pth')]) == 0
    (tmp_path / 'other.py').write_text('# a config of the user')
    assert main(['search', 'export', str(front), '--choose', '1', '--out', str(tmp_path / 'other.pth')]) == 2
    assert 'other.py exists and is another config' in capsys.readouterr().err
    other = shutil.copy(supernet(name), tmp_path / 'copy.pth')  # of the supernet
    assert main(['search', 'export', str(front), '--choose', '1', '--out', str(other)]) == 2
    assert 'copy.pth is a checkpoint that this command has not written' in capsys.readouterr().err
    # In a folder that was moved.
    config = tmp_path / 'net.py'
    config.write_text(config.read_text().replace(f"'{tmp_path.resolve()}/net.pth'", "'/elsewhere/net.pth'"))
    assert '/elsewhere/' in config.read_text()
    assert main(['search', 'export', str(front), '--choose', '1', '--out', str(tmp_path / 'net.pth')]) == 0
    assert '/elsewhere/' not in config.read_text()
    assert (tmp_path / 'other.py').read_text() == '# a config of the user'
    model = load_model(str(tmp_path / 'net.pth'), device='cpu')
    assert 'supernet' not in model.cfg
    assert model.cfg.input_size == ((64, 64) if name == DETECTOR else (96, 96))  # 0.6 times 128 and 160
    assert sum(p.numel() for p in model.backbone.parameters()) < 5e5
    expected = scorer.model(genes)[0].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    if name == SEGMENTER:  # trained further from the config beside it
        command = ['search', 'export', str(front), '--choose', '1', '--out', str(tmp_path / 'net.pth'), '--iters', '1']
        assert main(command) == 0
        assert str(tmp_path / 'net/best_') in capsys.readouterr().out
        cfg = load_model(str(tmp_path / 'net/iter_1.pth'), device='cpu').cfg
        assert main(command) == 2
        assert 'has checkpoints already' in capsys.readouterr().err
        assert cfg.model == model.cfg.model
        assert 'held_out' not in cfg.train_dataloader.dataset
        # Evaluated on the images that were held out, it has the score of the search.
        held_out = {'test_dataloader.dataset.indices': scorer._indices}
        tested = dict(work_dir=str(tmp_path / 'held out'), on='train', cfg_options=held_out)
        metrics = evaluate_files(None, str(tmp_path / 'net.pth'), **tested)
        (value,) = (value for key, value in metrics.items() if key.endswith(scorer.metric))
        assert value == pytest.approx(score, abs=1e-6)
    # On all training images, of which a part was held out.
    metrics = evaluate_files(None, str(tmp_path / 'net.pth'), work_dir=str(tmp_path / 'tested'), on='train')
    (value,) = (value for key, value in metrics.items() if key.endswith(scorer.metric))
    assert 0 <= value <= 1
    # Held-out images were not trained on, and only they are scored.
    folder = scorer.cfg.train_dataloader.dataset
    while 'dataset' in folder:
        folder = folder.dataset
    prefix = folder.data_prefix.get('img') or folder.data_prefix.get('img_path')
    samples = [sample for batch in scorer.images_for(genes).scored for sample in batch['data_samples']]
    assert all(is_held_out(os.path.relpath(sample.img_path, prefix), 0.2) for sample in samples)
    assert 0 < len(samples) == scorer.images


def test_a_search_continues_where_it_was_stopped(supernet, tmp_path, capsys):
    path = supernet(DETECTOR)
    lines: list[str] = []
    plan = Plan('random', 5, 0, None, 6)
    whole = search(path, plan, tmp_path, log=lines.append)
    assert lines[0].startswith('generation 1: 5 nets scored; the best has ')
    records = (tmp_path / SCORED).read_text()
    assert len(records.splitlines()) == 1 + 5 + 5
    assert [name for name, _ in whole.baselines] == [
        'mnv4_conv_s', 'mnv4_conv_s x 0.875', 'mnv4_conv_s x 0.75',
        'mnv4_conv_s, input x 0.8', 'mnv4_conv_s, input x 0.6',
    ]  # fmt: skip
    scores = {tuple(one['genes']): one['score'] for one in map(json.loads, records.splitlines()[1:])}
    assert [net.score for _, net in whole.baselines] == [scores[net.genes] for _, net in whole.baselines]
    # Killed in the middle of a line.
    (tmp_path / SCORED).write_text(records[: records.rindex('{') + 9])
    again = search(path, plan, tmp_path, log=lines.append)
    assert again == whole
    scored = [json.loads(line) for line in (tmp_path / SCORED).read_text().splitlines() if line.endswith('}')]
    assert scored[1:] == [json.loads(line) for line in records.splitlines()][1:]
    # The same search by the command, which scores nothing anew.
    before = (tmp_path / SCORED).read_bytes()
    arguments = ['--engine', 'random', '--nets', '5', '--images', '6', '--workers', '1', '--out', str(tmp_path)]
    assert main(['search', 'run', str(path), *arguments]) == 0
    assert (tmp_path / SCORED).read_bytes() == before
    assert read_front(tmp_path / 'front-random.json').nets == whole.nets
    assert '| GMACs | bbox_mAP | input |' in capsys.readouterr().out
    with pytest.raises(UserError, match=r'made with other images, other ground truth or another --images'):
        search(path, plan._replace(images=3), tmp_path)
    with pytest.raises(UserError, match='the smallest net of the space has'):
        search(path, plan._replace(limit=1e-3), tmp_path)


def test_images_of_several_sizes(supernet):
    """Calibration images are resized to one size; a last batch of one is left out, as a 1x1 norm cannot take it."""
    sizes = [(32, 48)] * 3 + [(48, 32)] * 2
    samples = [dict(inputs=torch.full((3, *size), i, dtype=torch.uint8)) for i, size in enumerate(sizes)]
    assert [len(batch['inputs']) for batch in _batches(samples)] == [3, 2]
    assert [len(batch['inputs']) for batch in _batches([samples[0]] * 17)] == [16, 1]
    resized_sample = _resized(samples[4], (32, 48))
    assert resized_sample['inputs'].shape == (3, 32, 48)
    assert resized_sample['inputs'].unique().tolist() == [4]
    scorer = Scorer(supernet(SEGMENTER))
    images = scorer.images_for(scorer.space.largest())
    assert all(len(batch['inputs']) > 1 for batch in images.calibration)


@pytest.mark.long
def test_two_processes_find_the_front_of_one(supernet, tmp_path):
    fronts = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        fronts.append(search(supernet(DETECTOR), Plan('nsga2', 60, 0, None, 6), out, workers=workers))
    assert fronts[0] == fronts[1]
