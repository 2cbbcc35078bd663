"""Controls, joined splits, tables; and one run from the command to the table, in the long suite."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import MODELS

from mnv4_mm.cli import main
from mnv4_mm.errors import UserError
from mnv4_mm.transfer.controls import ShuffleLabels
from mnv4_mm.transfer.data import join_splits
from mnv4_mm.transfer.protocol import Run, protocol_index, read_protocol
from mnv4_mm.transfer.records import FIELDS, append_record, read_records
from mnv4_mm.transfer.results import read_groups, with_results, write_results
from mnv4_mm.transfer.run import Job
from mnv4_mm.transfer.tables import group_records, to_csv
from mnv4_mm.transfer.work import run_job

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
    with pytest.raises(UserError, match='has no folder extra'):
        join_splits(root, ['train', 'extra'], ['val'], tmp_path / 'third')


def record(net: str, seed: int, score: float, **changes: object) -> dict:
    random = np.random.default_rng(seed)
    run = Run('ssdlite', net, 'random', '', seed)
    values = {
        **dict.fromkeys(FIELDS), 'protocol': 'bccd', **run._asdict(), 'recipe': 'r', 'data': 'd', 'metric': 'bbox_mAP',
        'score': score, 'resampled': (score + random.normal(0, 0.01, 100)).tolist(), 'steps': 7,
        'processor_minutes': 3.0, 'parameters': 2_000_000, 'macs': 5e8, 'latency_ms': 10.0 + seed,
    }  # fmt: skip
    return {**values, **changes}


@pytest.fixture
def records() -> list[dict]:
    return [
        *(record('mnv4_conv_s', seed, 0.5 + 0.01 * seed) for seed in SEEDS),
        *(record('mnv4_conv_m', seed, 0.6 + 0.01 * seed) for seed in SEEDS),
        *(record('timm:resnet18', seed, 0.505 + 0.01 * seed, latency_ms=None) for seed in SEEDS),
        *(record('mnv4_conv_s', seed, 0.1, control='zeroed') for seed in SEEDS),
    ]


def test_groups_are_of_one_recipe_and_one_data_set(records):
    (group,) = group_records(records)
    assert [row.name for row in group.rows] == ['mnv4_conv_m', 'resnet18', 'mnv4_conv_s', 'mnv4_conv_s, zeroed']
    assert group.rows[0].equal == []
    assert group.rows[1].equal == ['mnv4_conv_s']
    assert group.rows[2].value('latency_ms') == 10
    assert group.rows[1].value('latency_ms') is None
    others = [record('mnv4_conv_s', 0, 0.5, recipe='other'), record('mnv4_conv_m', 0, 0.5, data='other')]
    assert len(group_records([*records, *others])) == 3


def test_page_table_and_plot(records, tmp_path):
    file = tmp_path / 'bccd.jsonl'
    for one in records:
        append_record(file, one)
    page = tmp_path / 'page.md'
    page.write_text('# Title\n\n<!-- begin results -->\nformer\n<!-- end results -->\nafter\n')
    write_results([file], page)
    text = page.read_text()
    assert text.startswith('# Title\n')
    assert text.endswith('after\n')
    assert 'former' not in text
    assert '| mnv4_conv_m | 61.0 ± 1.0 |' in text
    assert '- zeroed (the deepest feature map set to zero: a lower score): mnv4_conv_s 10.0 ± 0.0' in text
    assert with_results(text, *read_groups([file])) == text
    assert (tmp_path / 'results/bccd-ssdlite.png').stat().st_size > 10_000
    rows = (tmp_path / 'results/transfer.csv').read_text().splitlines()
    assert len(rows) == 1 + 4
    assert rows[1].startswith('bccd,ssdlite,r,d,,mnv4_conv_m,random,0.61000,0.01000,')
    assert to_csv(read_groups([file])[0]) == (tmp_path / 'results/transfer.csv').read_text()
    page.write_text('no marks')
    with pytest.raises(UserError, match='no lines <!-- begin results -->'):
        write_results([file], page)


def test_the_committed_page_is_that_of_its_records(repository):
    files = sorted(path for path in (repository / 'docs/results').glob('*.jsonl') if path.stem in protocol_index())
    if not files:
        assert 'No records yet.' in (repository / 'docs/transfer.md').read_text(encoding='utf-8')
        return
    groups, protocols = read_groups(files)
    text = (repository / 'docs/transfer.md').read_text(encoding='utf-8')
    assert with_results(text, groups, protocols) == text
    assert to_csv(groups) == (repository / 'docs/results/transfer.csv').read_text(encoding='utf-8')


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
        "controls = ['shuffled', 'twin', 'zeroed']\n"
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
    assert not list((tmp_path / 'out/runs').iterdir())
    capsys.readouterr()
    assert main(arguments) == 0
    assert len(read_records(tmp_path / 'out/records.jsonl')) == len(records)
    assert main(['results', str(tmp_path / 'out/records.jsonl')]) == 2  # named like no protocol
    (tmp_path / 'out/records.jsonl').rename(tmp_path / 'tiny.jsonl')
    assert main(['results', str(tmp_path / 'tiny.jsonl'), '--page', str(tmp_path / 'page.md')]) == 0
    assert 'mnv4_conv_s_035' in (tmp_path / 'page.md').read_text()
    assert json.loads((tmp_path / 'tiny.jsonl').read_text().splitlines()[0])['machine']['cpu']


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
        weights_dir=None, record=str(tmp_path / 'w/record.json'),
    )  # fmt: skip
    record = run_job(job, 1)
    assert 'has no data set of a format that is known' in record['error']
    assert record['net'] == 'mnv4_conv_s'
