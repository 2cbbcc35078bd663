"""The cached data set equals mmdet's, does not parse the JSON again, and shares one copy between processes."""

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import DataLoader, Dataset

from mnv4_mm.bench.reading import annotation_times, write_full_size
from mnv4_mm.data.coco_dataset import CachedCocoDataset, Columns
from mnv4_mm.errors import UserError

FILTER = dict(filter_empty_gt=True, min_size=32)
SETTINGS = [
    dict(filter_cfg=FILTER),
    dict(),
    dict(filter_cfg=dict(filter_empty_gt=False, min_size=400)),
    dict(test_mode=True, filter_cfg=FILTER),
    dict(metainfo=dict(classes=('dog', 'person')), filter_cfg=FILTER),
    dict(indices=7),
    dict(indices=-7),
    dict(indices=10**6),
    dict(indices=[5, 3, 3, -1]),
    dict(lazy_init=True),
]


@pytest.fixture
def annotations(tmp_path, repository):
    """Annotations of the small real data set.

    With an image without boxes, crowds, non-ASCII and absolute names, and categories that are not sorted by id.
    """
    content = json.loads((repository / 'data/mini/coco/annotations/instances_train2017.json').read_text())
    empty = content['images'][3]['id']
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != empty]
    content['images'][0]['file_name'] = 'Straße/写真 😀.jpg'
    content['images'][1]['file_name'] = '/elsewhere/1.jpg'
    content['annotations'][0]['iscrowd'] = 1
    content['categories'] = content['categories'][40:] + content['categories'][:40]
    assert any(type(value) is int for a in content['annotations'] for value in a['bbox'])
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')
    return path


@pytest.fixture(autouse=True)
def log(monkeypatch):
    """Warnings of the log."""
    lines = []
    monkeypatch.setattr(
        'mnv4_mm.data.coco_dataset.print_log', lambda text, logger, level=0: lines.append(text) if level else None
    )
    return lines


def options(path, **settings):
    return dict(ann_file=path.name, data_root=str(path.parent), data_prefix=dict(img='train2017/'), **settings)


def build(path, **settings):
    return CachedCocoDataset(**options(path, **settings), min_cache_bytes=0)


def expected(path, **settings):
    return entries(CocoDataset(**options(path, **settings)))


def entries(dataset):
    """Return all entries without masks, as text that distinguishes 1 from 1.0."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    for info in infos:
        for instance in info['instances']:
            instance.pop('mask', None)
    return [repr(sorted((key, *plain(value)) for key, value in info.items())) for info in infos]


def plain(value):
    return ([sorted(item.items()) for item in value],) if isinstance(value, list) else (type(value), value)


def caches(path):
    return sorted(path.parent.glob('*.cache.safetensors'))


def no_parsing(monkeypatch):
    def refuse(self):
        raise AssertionError('the JSON is parsed')

    monkeypatch.setattr(CocoDataset, 'load_data_list', refuse)


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_entries_equal_mmdet(annotations, settings, monkeypatch, capsys):
    reference = CocoDataset(**options(annotations, **settings))
    reference.full_init()
    first = build(annotations, **settings)
    first.full_init()
    capsys.readouterr()
    no_parsing(monkeypatch)
    second = build(annotations, **settings)
    second.full_init()
    assert capsys.readouterr().out == ''
    (path,) = caches(annotations)
    assert path.stat().st_mode == annotations.stat().st_mode
    for dataset in (first, second):
        assert dataset.columns.source is not None
        assert len(dataset) == len(reference) > 1
        assert entries(dataset) == entries(reference)
        assert dataset[-1] == {**dataset[len(reference) - 1]}
        assert (dataset.cat_ids, dataset.cat2label) == (reference.cat_ids, reference.cat2label)
        assert [dataset.get_cat_ids(i) for i in range(len(reference))] == [
            reference.get_cat_ids(i) for i in range(len(reference))
        ]
        with pytest.raises(IndexError):
            dataset.get_data_info(len(reference))


def test_the_comparison_covers_all_fields(annotations):
    text = ' '.join(entries(build(annotations)))
    for part in ("'ignore_flag', 1", 'Straße/写真 😀.jpg', "'/elsewhere/1.jpg'", "('instances', [])", "'sample_idx'"):
        assert part in text


def test_wrappers_and_subsets(annotations):
    ours, theirs = (
        kind(annotations, filter_cfg=FILTER) for kind in (build, lambda *a, **k: CocoDataset(**options(*a, **k)))
    )
    wrappers = [
        lambda d: RepeatDataset(d, times=3),
        lambda d: ConcatDataset([d, d]),
        lambda d: ClassBalancedDataset(d, oversample_thr=0.3),
        lambda d: d.get_subset(5),
        lambda d: d.get_subset(-5).get_subset([2, 0]),
        lambda d: d.get_subset([]),
        copy.deepcopy,
        lambda d: pickle.loads(pickle.dumps(d)),
    ]
    for wrap in wrappers:
        assert entries(wrap(ours)) == entries(wrap(theirs))
    assert ours.get_subset(5).columns is ours.columns
    assert copy.deepcopy(ours).columns is ours.columns
    for dataset in (ours, theirs):
        dataset.get_subset_([4, 2])
    assert entries(ours) == entries(theirs)
    for wrong in ('ab', [10**6], 1.5):
        with pytest.raises((TypeError, IndexError, ValueError)):
            ours.get_subset(wrong)


def test_samples_equal_mmdet(repository, tmp_path):
    root = shutil.copytree(repository / 'data/mini/coco', tmp_path / 'coco')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(320, 320)),
        dict(type='PackDetInputs'),
    ]
    common = dict(
        ann_file='annotations/instances_train2017.json', data_root=str(root), data_prefix=dict(img='train2017'),
        pipeline=pipeline,
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours = DATASETS.build(dict(common, type='CachedCocoDataset', min_cache_bytes=0))
        theirs = DATASETS.build(dict(common, type='CocoDataset'))
    assert ours.columns is not None
    for i in (0, 17, 63):
        a, b = ours[i], theirs[i]
        assert torch.equal(a['inputs'], b['inputs'])
        mine, its = a['data_samples'], b['data_samples']
        assert mine.metainfo == its.metainfo
        for one, other in ((mine.gt_instances, its.gt_instances), (mine.ignored_instances, its.ignored_instances)):
            assert torch.equal(one.bboxes.tensor, other.bboxes.tensor)
            assert torch.equal(one.labels, other.labels)


def test_the_key_depends_on_content_and_settings(annotations, monkeypatch):
    build(annotations)
    before = annotations.stat()
    content = annotations.read_bytes()
    at = content.index(b'"width": ') + 9
    annotations.write_bytes(content[:at] + (b'1' if content[at : at + 1] != b'1' else b'2') + content[at + 1 :])
    os.utime(annotations, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert annotations.stat().st_size == before.st_size
    assert entries(build(annotations)) == expected(annotations)
    for number, settings in enumerate([dict(test_mode=True), dict(filter_cfg=FILTER), SETTINGS[4]]):
        build(annotations, **settings)
        assert len(caches(annotations)) == 3 + number
    monkeypatch.setattr('mmdet.__version__', '99')
    build(annotations)
    assert len(caches(annotations)) == 6


def test_images_may_move(annotations, tmp_path, monkeypatch):
    build(annotations)
    reference = CocoDataset(**dict(options(annotations), data_prefix=dict(img='/other')))
    no_parsing(monkeypatch)
    ours = CachedCocoDataset(**dict(options(annotations), data_prefix=dict(img='/other')), min_cache_bytes=0)
    assert entries(ours) == entries(reference)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_header(path):
    path.write_bytes(path.read_bytes()[:50])


def empty(path):
    path.write_bytes(b'')


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_type(path):
    path.write_bytes(path.read_bytes().replace(b'"dtype":"F64"', b'"dtype":"I64"'))


def of_another_file(path):
    other = path.with_name('other.json')
    shutil.copy(path.with_name('instances.json'), other)
    build(other, test_mode=True)
    (written,) = path.parent.glob('other.*.safetensors')
    written.replace(path)


def unpicklable(path):
    torch.save(dict(a=1), path)


@pytest.mark.parametrize('damage', [cut, cut_in_header, empty, flip, other_type, of_another_file, unpicklable])
def test_a_damaged_cache_is_reported_and_written_again(annotations, damage, log, monkeypatch):
    reference = entries(build(annotations))
    (path,) = caches(annotations)
    good = path.read_bytes()
    damage(path)
    assert path.read_bytes() != good
    assert entries(build(annotations)) == reference
    assert len(log) == 1
    assert str(path) in log[0]
    assert 'written again' in log[0]
    no_parsing(monkeypatch)
    assert entries(build(annotations)) == reference
    assert len(log) == 1


def test_a_folder_that_cannot_be_written(annotations, log, monkeypatch):
    def refuse(self, data):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(Path, 'write_bytes', refuse)
    dataset = build(annotations)
    assert dataset.columns.source is None
    assert len(log) == 1
    assert 'Permission denied' in log[0]
    assert entries(dataset) == expected(annotations)
    assert entries(pickle.loads(pickle.dumps(dataset))) == entries(dataset)
    assert [path.name for path in annotations.parent.iterdir()] == ['instances.json']


def test_a_disk_that_fills_leaves_nothing(annotations, monkeypatch):
    write = Path.write_bytes

    def half(self, data):
        write(self, data[:1000])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', half)
    build(annotations)
    assert [path.name for path in annotations.parent.iterdir()] == ['instances.json']


def test_settings_beyond_the_columns_are_not_cached(annotations, log):
    assert len(CachedCocoDataset(**options(annotations))) == len(CocoDataset(**options(annotations)))  # too small
    masks = [dict(type='mmdet.LoadAnnotations', with_mask=True)]
    for settings in (
        dict(pipeline=masks),
        dict(return_classes=True),
        dict(serialize_data=False),
        dict(backend_args=dict(backend='local')),
    ):
        dataset, theirs = build(annotations, **settings), CocoDataset(**options(annotations, **settings))
        assert dataset.columns is None
        assert dataset.get_data_info(5) == theirs.get_data_info(5)
        assert 'mask' in dataset.get_data_info(5)['instances'][0]
    seg = dict(options(annotations), data_prefix=dict(img='a', seg='b'))
    assert CachedCocoDataset(**seg, min_cache_bytes=0).get_data_info(5) == CocoDataset(**seg).get_data_info(5)
    assert caches(annotations) == []
    assert log == []
    content = json.loads(annotations.read_text())
    for entry, key in [(image, 'id') for image in content['images']] + [
        (a, 'image_id') for a in content['annotations']
    ]:
        entry[key] = f'n{entry[key]}'
    annotations.write_text(json.dumps(content))
    assert entries(build(annotations)) == expected(annotations)
    assert caches(annotations) == []
    assert 'parsed in every run' in log[0]


def test_an_empty_selection_is_an_error(annotations):
    for _ in range(2):
        with pytest.raises(UserError, match=r'no images remain .* classes unicorn'):
            build(annotations, metainfo=dict(classes=('unicorn',)), filter_cfg=FILTER)


def test_without_any_box(annotations):
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(dict(content, annotations=[])))
    for _ in range(2):
        assert entries(build(annotations, test_mode=True)) == expected(annotations, test_mode=True)


def test_mistakes_in_the_json_are_user_errors(annotations, tmp_path):
    for content in ('{', '[]', '{"images": [{}], "annotations": [], "categories": []}'):
        annotations.write_text(content)
        with pytest.raises(UserError, match='is not a COCO annotation file'):
            build(annotations)
    with pytest.raises(FileNotFoundError):
        build(tmp_path / 'none.json')


def test_columns_cannot_be_changed(annotations):
    build(annotations)
    with pytest.raises(ValueError, match='read-only'):
        build(annotations).columns.box[0] = 0


def read_all(dataset, queue):
    """In a worker: read every entry, then the kernel's statistics of the mapped file in this process."""
    texts = entries(dataset)
    mapped = str(dataset.columns.source[0])
    fields, inside = {}, False
    for line in Path('/proc/self/smaps').read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(':'):
            inside = line.endswith(mapped)
        elif inside and values[-1] == 'kB':
            fields[name] = fields.get(name, 0) + int(values[0])
    queue.put((texts, fields, hasattr(dataset, 'data_list') and len(dataset.data_list)))


@pytest.mark.skipif(not Path('/proc/self/smaps').exists(), reason='needs /proc of Linux')
@pytest.mark.parametrize('way', ['fork', 'spawn'])
def test_workers_share_the_file(tmp_path, way):
    write_full_size(tmp_path / 'instances.json', images=2000, annotations=16_000)
    dataset = build(tmp_path / 'instances.json')
    assert len(pickle.dumps(dataset)) < 50_000 < 400_000 < dataset.columns.box.nbytes
    context = multiprocessing.get_context(way)
    queue = context.Queue()
    worker = context.Process(target=read_all, args=(dataset, queue))
    worker.start()
    texts, fields, left = queue.get(timeout=120)  # a worker that fails puts nothing
    worker.join()
    assert texts == entries(dataset)
    assert left == 0
    assert fields['Rss:'] * 1024 >= dataset.columns.box.nbytes
    assert fields['Anonymous:'] == 0  # no page is copied


class LateDataset(Dataset):
    """Data set that is initialised by a worker of the data loader."""

    def __init__(self, path):
        self.dataset = build(path, lazy_init=True)

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return self.dataset[i]


def rank(number, folder, queue):
    """Build the same data sets in ranks 0 and 1: written, found, not writable, not JSON."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=number, world_size=2)
    annotations = folder / 'instances.json'
    parsed = []
    load = CachedCocoDataset.load_data_list
    CachedCocoDataset.load_data_list = lambda self: parsed.append(number) or load(self)
    report = []
    for _ in range(2):
        dataset = build(annotations)
        report.append((len(parsed), dataset.columns.source is not None, len(dataset)))
    torch.distributed.barrier()
    write, Columns.write = Columns.write, refuse_to_write
    dataset = build(annotations, test_mode=True)
    report.append((len(parsed), dataset.columns.source is not None, len(dataset)))
    Columns.write = write
    done = folder / 'done'
    if number == 0:  # a worker does not wait for the other rank, which is not at a barrier now
        loader = DataLoader(LateDataset(annotations), None, num_workers=1, timeout=30, multiprocessing_context='fork')
        report.append(next(iter(loader))['img_id'])
        done.touch()
    while not done.exists():
        time.sleep(0.1)
    try:
        build(folder / 'broken.json')
    except UserError:
        report.append('broken')
    torch.distributed.barrier()
    queue.put((number, report))
    torch.distributed.destroy_process_group()


def refuse_to_write(self, path, key):
    raise UserError('it cannot be written: Permission denied')


def test_ranks_parse_once_and_never_hang(annotations):
    annotations.with_name('broken.json').write_text('{')
    context = multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    ranks = [context.Process(target=rank, args=(number, annotations.parent, queue)) for number in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    for process in ranks:
        process.kill()  # those that still wait
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    reports = dict(queue.get() for _ in ranks)
    assert reports[0] == [(1, True, 64), (1, True, 64), (2, False, 64), 72, 'broken']
    assert reports[1] == [(0, True, 64), (0, True, 64), (1, False, 64), 'broken']


def test_a_full_size_file_can_be_made(tmp_path):
    path = tmp_path / 'instances.json'
    write_full_size(path, images=200, annotations=1000)
    content = json.loads(path.read_text())
    assert len(content['images']) == 200
    assert 990 < len({a['id'] for a in content['annotations']}) == len(content['annotations']) <= 1000
    counts = np.bincount([a['image_id'] for a in content['annotations']], minlength=201)[1:]
    assert (counts > 0).all()
    assert entries(build(path, filter_cfg=FILTER)) == expected(path, filter_cfg=FILTER)


@pytest.mark.long
def test_starts_are_measured(tmp_path):
    path = tmp_path / 'instances.json'
    write_full_size(path, images=200, annotations=1000)
    starts = annotation_times(path, rounds=1)
    assert [len(runs) for runs in starts.values()] == [1, 1, 1, 1]
    assert all(run.peak_mib > 100 for runs in starts.values() for run in runs)
