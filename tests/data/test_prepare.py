"""A user's detection data, whatever state it is in: right, or refused in one line that names the file and the entry."""

import contextlib
import copy
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import mnv4_mm
from mnv4_mm.config.classes import set_label_order
from mnv4_mm.config.data import innermost_dataset, with_data
from mnv4_mm.config.load import load_config
from mnv4_mm.data import prepare as module
from mnv4_mm.data.cache import cache_folder
from mnv4_mm.data.coco_files import CocoLayout
from mnv4_mm.data.prepare import examine_detection, is_prepared, prepare_detection
from mnv4_mm.data.trained import count_trained
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import detection, task_of

WIDTH, HEIGHT = 64, 48
Content = dict[str, Any]


def make_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six training and two validation images with two boxes each, in COCO's layout."""
    folder = tmp_path / 'mine'
    for split, count in (('train', 6), ('val', 2)):
        images, annotations = [], []
        for i in range(1, count + 1):
            name = f'{i:04}.jpg'
            make_image(folder / split / name, seed=len(split) * 10 + i)
            images.append(dict(id=i, file_name=name, width=WIDTH, height=HEIGHT))
            for label, box in ((1, [4 + i, 5, 20, 10]), (2, [30, 6 + i, 8, 30])):
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i,
                        category_id=label,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
        write(folder, split, dict(images=images, annotations=annotations, categories=categories('cat', 'dog')))
    return folder


def categories(*names: str) -> list[Content]:
    return [dict(id=i, name=name) for i, name in enumerate(names, 1)]


def write(root: Path, split: str, content: Content) -> None:
    path = root / f'annotations/instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def edit(root: Path, change: Callable[[Content], object], splits: tuple[str, ...] = ('train', 'val')) -> None:
    for split in splits:
        path = root / f'annotations/instances_{split}.json'
        content = json.loads(path.read_text())
        change(content)
        write(root, split, content)


def each_box(change: Callable[[Content], object]) -> Callable[[Path], None]:
    return lambda root: edit(root, lambda content: [change(annotation) for annotation in content['annotations']])


def score_of_the_truth(layout: CocoLayout) -> float:
    """Return pycocotools' AP of detections that are the ground truth itself."""
    path = layout.val.annotations
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        found = [dict(copy.deepcopy(a), score=1.0) for a in truth.dataset['annotations'] if not a['iscrowd']]
        evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def bom(root: Path) -> None:
    path = root / 'annotations/instances_train.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())


def ids_from_zero(root: Path) -> None:
    def change(content: Content) -> None:
        for entry in (*content['images'], *content['annotations'], *content['categories']):
            for key in entry.keys() & {'id', 'image_id', 'category_id'}:
                entry[key] -= 1

    edit(root, change)


def ids_huge(root: Path) -> None:
    def change(content: Content) -> None:
        for entry in (*content['images'], *content['annotations']):
            for key in entry.keys() & {'id', 'image_id'}:
                entry[key] += 2**60

    edit(root, change)


def ids_as_text(root: Path) -> None:
    def change(content: Content) -> None:
        for entry in (*content['images'], *content['annotations'], *content['categories']):
            for key in entry.keys() & {'id', 'image_id', 'category_id'}:
                entry[key] = f'x{entry[key]}'

    edit(root, change)


def negative_as_zero_box(root: Path) -> None:
    def change(content: Content) -> None:
        content['annotations'][2:4] = [dict(content['annotations'][2], bbox=[0, 0, 0, 0], area=0)]

    edit(root, change)


def webp_turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / 'train/0001.jpg') as image:
        image.transpose(Image.Transpose.ROTATE_90).save(root / 'train/0001.webp', exif=exif, lossless=True)
    edit(root, lambda content: content['images'][0].update(file_name='0001.webp'), ('train',))


def exif_malformed(root: Path) -> None:
    path = root / 'train/0001.jpg'
    content = path.read_bytes()
    junk = b'Exif\0\0' + b'no TIFF header at all' * 3
    path.write_bytes(content[:2] + b'\xff\xe1' + (len(junk) + 2).to_bytes(2, 'big') + junk + content[2:])


def alpha(root: Path) -> None:
    pixels = cv2.imread(str(root / 'train/0001.jpg'))
    cv2.imwrite(str(root / 'train/0001.png'), cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA))
    edit(root, lambda content: content['images'][0].update(file_name='0001.png'), ('train',))


# Kind of data that trains -> kinds of its findings.
TRAINED = {
    'valid': (lambda root: None, set()),
    'json-bom': (bom, set()),
    'area-zero': (each_box(lambda a: a.update(area=0)), {'area-zero'}),
    'fields-missing': (each_box(lambda a: (a.pop('area'), a.pop('iscrowd'))), {'area-missing'}),
    'iscrowd-missing': (each_box(lambda a: a.pop('iscrowd')), set()),
    'ids-from-zero': (ids_from_zero, set()),
    'ids-huge': (ids_huge, set()),
    'ids-strings': (ids_as_text, set()),
    'negative-as-zero-box': (negative_as_zero_box, {'zero-box'}),
    'outside-by-two-pixels': (
        lambda root: edit(root, lambda c: c['annotations'][0].update(bbox=[-2, 5, 20, 10])),
        {'box-clipped'},
    ),
    'exif-malformed': (exif_malformed, set()),
    'rgba-screenshot': (alpha, set()),
}


@pytest.mark.parametrize('case', TRAINED)
def test_data_that_trains(root, case):
    change, kinds = TRAINED[case]
    change(root)
    before = {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}
    layout = prepare_detection(root)
    assert {finding.kind for finding in layout.checked.findings} == kinds
    assert score_of_the_truth(layout) == pytest.approx(1)
    content = json.loads(layout.train.annotations.read_text())
    trained = count_trained(content, dict(filter_empty_gt=True, min_size=32))
    # The image without objects is left out by filter_empty_gt.
    assert (trained.images, trained.boxes) == ((5, 10) if case == 'negative-as-zero-box' else (6, 12))
    assert [a['id'] for a in content['annotations']] == list(range(1, len(content['annotations']) + 1))
    assert all(a['area'] == a['bbox'][2] * a['bbox'][3] for a in content['annotations'])
    assert {path: path.read_bytes() for path in root.rglob('*') if path.is_file()} == before


def test_ids_stay_those_of_the_data(root):
    ids_huge(root)
    layout = prepare_detection(root)
    content = json.loads(layout.train.annotations.read_text())
    assert [image['id'] for image in content['images']] == [2**60 + i for i in range(1, 7)]
    assert content['categories'] == categories('cat', 'dog')
    assert [image['file_name'] for image in content['images']] == [f'train/{i:04}.jpg' for i in range(1, 7)]
    assert layout.train.images == root


def crowds(root: Path, splits: tuple[str, ...]) -> None:
    edit(root, lambda content: [a.update(iscrowd=1) for a in content['annotations']], splits)


def truncated(root: Path) -> None:
    path = root / 'train/0003.jpg'
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])


def shares(root: Path) -> None:
    each_box(lambda a: a.update(bbox=[v / s for v, s in zip(a['bbox'], (64, 48) * 2, strict=True)], area=0.01))(root)


def exif_swapped(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / 'train/0002.jpg') as image:
        image.copy().save(root / 'train/0002.jpg', exif=exif)


def outside(root: Path) -> None:
    make_image(root.parent / 'outside.jpg', 5)
    edit(root, lambda content: content['images'][0].update(file_name='../../outside.jpg'), ('train',))


def ids_restart(root: Path) -> None:
    def change(content: Content) -> None:
        for i, annotation in enumerate(content['annotations']):
            annotation['id'] = i % 2 + 1  # 1 and 2 in each image

    edit(root, change)


def boxes_as_text(root: Path) -> None:
    def change(content: Content) -> None:
        content['annotations'][2].update(bbox=['5', '6', '20', '10'])
        content['annotations'][3].update(bbox=[])

    edit(root, change, ('train',))


# Kind of data that is refused -> what the message says, also with allow_dropped; and whether allow_dropped accepts it.
REFUSED = {
    'bbox-nan': (
        lambda root: edit(root, lambda c: c['annotations'][3].update(bbox=[math.nan, 1, 2, 3]), ('train',)),
        r'1 of 16 boxes \(6.25 %\) would be left out, .*annotation 4: the box \[nan, 1, 2, 3\] of train/0002.jpg',
        True,
    ),
    'bbox-nan-val': (
        lambda root: edit(root, lambda c: c['annotations'][3].update(bbox=[math.nan, 1, 2, 3]), ('val',)),
        r'instances_val.json, annotation 4: the box \[nan',
        True,
    ),
    'bbox-normalised': (shares, r'16 of 16 boxes are within one pixel, .*look like shares of the image', False),
    'bbox-strings': (
        boxes_as_text,
        r'2 of 16 boxes \(12.5 %\) would be left out, .*2 times box-invalid.*first: .*annotation 3: ',
        True,
    ),
    'category-id-twice': (
        lambda root: edit(root, lambda c: c['categories'][1].update(id=1)),
        r'give each category its own id \(first: .*instances_train.json, category 1: .* have the same id',
        False,
    ),
    'annotation-ids-restart': (
        ids_restart,
        'annotation-id-twice: .*instances_train.json, annotation 1: ',
        False,
    ),
    'crowd-all': (
        lambda root: crowds(root, ('train',)),
        'all 12 training boxes are crowds.*set iscrowd, ignore or difficult to 0',
        False,
    ),
    'crowd-all-val': (lambda root: crowds(root, ('val',)), 'all 4 validation boxes are crowds', False),
    'exif-swapped': (exif_swapped, r'train/0002.jpg is 48x64, not 64x48: its EXIF orientation 6 turns it', False),
    'path-outside': (outside, 'outside.jpg', False),
    'path-windows': (
        lambda root: edit(
            root, lambda c: [i.update(file_name=rf'..\..\media\upload\4\{i["file_name"]}') for i in c['images']]
        ),
        r"8 times path-outside.*instances_train.json, image 1: .*0001.jpg' leaves the folder; train/0001.jpg has",
        False,
    ),
    'train-truncated-jpeg': (truncated, r'1 of 8 images \(12.5 %\) would be left out.*train/0003.jpg: it is', True),
    'train-all-negative': (
        lambda root: edit(root, lambda c: c['annotations'].clear(), ('train',)),
        'none of the 6 training images has a box',
        False,
    ),
    'val-without-boxes': (
        lambda root: edit(root, lambda c: c['annotations'].clear(), ('val',)),
        'none of the 2 validation images has a box: there is nothing to measure AP with',
        False,
    ),
    'far-outside': (
        lambda root: edit(root, lambda c: c['annotations'][0].update(bbox=[300, 5, 20, 10]), ('train',)),
        r'annotation 1: the box \[300, 5, 20, 10\] of train/0001.jpg reaches 256 pixels outside of its 64x48 image',
        True,
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_data_that_is_refused(root, case):
    change, message, accepted = REFUSED[case]
    change(root)
    for _ in range(2):  # a mistake is not forgotten
        with pytest.raises(UserError, match=message) as error:
            prepare_detection(root)
        assert '\n' not in str(error.value)
    if accepted:
        layout = prepare_detection(root, allow_dropped=True)
        assert score_of_the_truth(layout) == pytest.approx(1)
        assert sum(count.dropped for count in layout.checked.counts.values()) == (2 if case == 'bbox-strings' else 1)
    else:
        with pytest.raises(UserError, match=message):
            prepare_detection(root, allow_dropped=True)


def test_a_webp_file_with_an_orientation_is_checked_as_it_is_read(root):
    """Labelled as turned: trained on as turned, or refused; never checked as turned and read as stored."""
    webp_turned(root)
    height, width = mnv4_mm.images.read_image(root / 'train/0001.webp').shape[:2]
    if (width, height) == (WIDTH, HEIGHT):
        assert prepare_detection(root).checked.findings == ()
    else:
        with pytest.raises(UserError, match=f'0001.webp is {width}x{height}, not {WIDTH}x{HEIGHT}.*EXIF'):
            prepare_detection(root)


def test_unchanged_data_is_read_once(root, monkeypatch):
    first = prepare_detection(root)
    with monkeypatch.context() as patch:
        patch.delattr(module, 'recognise')
        assert prepare_detection(root) == first
        patch.chdir(root.parent)
        relative = prepare_detection('mine')
        assert relative.train.annotations == first.train.annotations
        assert relative.train.images == Path('mine')
    assert is_prepared(first.train.annotations)
    edit(root, lambda c: c['annotations'][0].update(bbox=[1, 1, 5, 5]), ('val',))
    second = prepare_detection(root)
    assert second.val.annotations != first.val.annotations
    assert json.loads(second.val.annotations.read_text())['annotations'][0]['bbox'] == [1, 1, 5, 5]
    shutil.rmtree(cache_folder(root))
    assert prepare_detection(root) == second


def test_prepared_files_of_earlier_states_are_removed_after_a_month_without_use(root):
    folders = []
    for x in (1, 2):
        edit(root, lambda c, x=x: c['annotations'][0].update(bbox=[x, 1, 5, 5]), ('val',))
        folders.append(prepare_detection(root).val.annotations.parent)
    assert all(folder.is_dir() for folder in folders)  # a run may still use the first
    month = time.time() - (module.UNUSED_DAYS + 1) * 24 * 3600
    for folder in folders:
        os.utime(folder / 'checked.json', (month, month))
    prepare_detection(root)
    assert [folder.is_dir() for folder in folders] == [False, True]


def test_damaged_files_of_the_cache_are_made_again(root):
    first = prepare_detection(root)
    content = first.train.annotations.read_bytes()
    (first.train.annotations.parent / 'checked.json').write_text('{"task": ')
    first.train.annotations.unlink()
    assert prepare_detection(root).train.annotations.read_bytes() == content
    (first.train.annotations.parent / 'checked.json').write_text('{"splits": [1]}')
    assert prepare_detection(root).train.annotations.read_bytes() == content
    first.train.annotations.unlink()
    assert prepare_detection(root).train.annotations.read_bytes() == content


def test_a_class_that_a_checkpoint_has_twice_is_named(root):
    with pytest.raises(UserError, match=r"1 classes 'cat' and the checkpoint has 2"):
        prepare_detection(root, classes=('dog', 'cat', 'cat'))


def test_classes_in_the_order_of_a_checkpoint(root):
    layout = prepare_detection(root, classes=('dog', 'cat'))
    assert layout.classes == ('dog', 'cat')
    dataset = CocoDataset(
        data_root='', ann_file=str(layout.train.annotations), data_prefix=dict(img=str(root)), test_mode=True,
        metainfo=dict(classes=layout.classes),
    )  # fmt: skip
    assert dataset.cat_ids == [2, 1]
    instances = dataset.get_data_info(0)['instances']
    assert [(instance['bbox'][:2], instance['bbox_label']) for instance in instances] == [([5, 5], 1), ([30, 7], 0)]
    assert prepare_detection(root).classes == ('cat', 'dog')
    with pytest.raises(UserError, match="only the data set has 'dog'; only the checkpoint has 'cow'"):
        prepare_detection(root, classes=('cat', 'cow'))


def test_data_without_a_split(root):
    shutil.rmtree(root / 'val')
    (root / 'annotations/instances_val.json').unlink()
    layout = prepare_detection(root)
    split = json.loads(layout.checked.split_file.read_text())
    names = [image['file_name'] for image in json.loads(layout.val.annotations.read_text())['images']]
    assert split['val'] == names
    assert len(names) == 1
    assert len(split['train']) == 5
    assert f'the split is written to {layout.checked.split_file}' in layout.checked.notes
    # A new image does not move the others.
    make_image(root / 'train/0007.jpg', 700)
    image = dict(id=7, file_name='0007.jpg', width=WIDTH, height=HEIGHT)
    edit(root, lambda content: content['images'].append(image), ('train',))
    again = json.loads(prepare_detection(root).checked.split_file.read_text())
    assert set(split['val']) <= set(again['val'])
    assert set(split['train']) <= set(again['train'])


def test_no_split_is_written_if_no_image_is_left(root):
    shutil.rmtree(root / 'val')
    (root / 'annotations/instances_val.json').unlink()
    for path in (root / 'train').iterdir():
        path.write_bytes(b'version https://git-lfs.github.com/spec/v1')
    checked = examine_detection(root).checked
    assert checked.split_file is None
    assert not any('split is written' in note for note in checked.notes)


def examine_in_process(root: Path) -> str:
    return str(prepare_detection(root).train.annotations)


def test_processes_wait_for_each_other(root):
    with ProcessPoolExecutor(3) as pool:
        assert len(set(pool.map(examine_in_process, [root] * 3))) == 1


def test_a_process_that_waits_says_so(root, monkeypatch, capsys):
    monkeypatch.setattr(module, 'WAIT', 0.1)
    with ThreadPoolExecutor(1) as pool:
        with module.prepared_folder(root, 'detection'):
            other = pool.submit(examine_in_process, root)
            while 'waiting' not in (error := capsys.readouterr().err):
                assert not other.done()
                time.sleep(0.05)
            assert error == f'another process checks {root}: waiting for it\n'
        assert Path(other.result()).is_file()


def test_prepared_files_of_any_size_are_counted_and_images_read_once(root, monkeypatch):
    layout = prepare_detection(root)
    monkeypatch.setattr(detection, 'FULL_CHECK_BYTES', 0)
    monkeypatch.setattr(detection, 'check_split', lambda split: pytest.fail('images are read again'))
    cfg = with_data(load_config('mnv4_ssdlite_coco-mini'), layout)
    dataset = innermost_dataset(cfg.train_dataloader.dataset)
    assert task_of(cfg).training_lines(layout.train, cfg, dataset)[0].startswith('6 of 6 images and 12 of 12 boxes')
    set_label_order(cfg)
    assert cfg.train_dataloader.dataset == with_data(cfg, layout).train_dataloader.dataset
    # An order that the file does not have is still noticed.
    dataset.metainfo.classes = ('dog', 'cat')
    set_label_order(cfg)
    assert dataset.type == 'NamedCocoDataset'


def test_what_is_trained_on_is_counted_by_mmdets_rules(root, tmp_path):
    random = np.random.default_rng(0)
    images = [
        dict(id=i, file_name=f'{i}.jpg', width=int(w), height=64) for i, w in enumerate(random.integers(20, 64, 60))
    ]
    annotations = []
    for i in range(200):
        x, y, w, h = (float(value) for value in (*random.uniform(-20, 60, 2), *random.uniform(-0.5, 9, 2)))
        if i % 20 < 4:
            x, y, w, h = (math.nan if i % 20 == k else value for k, value in enumerate((x, y, w, h)))
        annotations.append(
            dict(
                id=i + 1, image_id=int(random.integers(0, 50)), category_id=int(random.integers(1, 4)),
                bbox=[x, y, w, h], area=float(random.choice([0, w * h])), iscrowd=int(random.choice([0, 0, 1])),
                ignore=int(random.choice([0, 0, 0, 1])),
            )
        )  # fmt: skip
    content = dict(images=images, annotations=annotations, categories=categories('cat', 'dog', 'cow'))
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    for filter_cfg in (None, dict(filter_empty_gt=True), dict(filter_empty_gt=True, min_size=32), dict(min_size=40)):
        for classes in (('cat', 'dog', 'cow'), ('cat', 'cow'), ('dog',)):
            dataset = CocoDataset(
                ann_file=str(path), metainfo=dict(classes=classes), data_prefix=dict(img=''), filter_cfg=filter_cfg
            )
            infos = [dataset.get_data_info(i) for i in range(len(dataset))]
            trained = count_trained(content, filter_cfg, classes)
            assert trained.images == len(infos)
            assert trained.boxes == sum(not item['ignore_flag'] for info in infos for item in info['instances'])
            left_out = {name: count for name, count in trained.reasons.items() if 'images' not in name}
            assert trained.reasons['boxes that are not finite'] > 0
            assert trained.boxes + sum(left_out.values()) + trained.reasons.get('boxes of small images', 0) == 200


def test_images_that_the_config_leaves_out_are_named(root):
    edit(root, lambda content: [image.update(width=WIDTH) for image in content['images']])
    content = json.loads(prepare_detection(root).train.annotations.read_text())
    trained = count_trained(content, dict(filter_empty_gt=True, min_size=50))
    assert str(trained) == (
        '0 of 6 images and 0 of 12 boxes will be trained on (left out: 6 images smaller than 50 pixels, 12 boxes of '
        'small images)'
    )
    with pytest.raises(UserError, match=r'0 of 6 images.*a smaller min_size there takes smaller images'):
        trained.require_some(Path('train.json'))


def test_a_cleaned_copy(root, tmp_path):
    truncated(root)
    edit(root, lambda content: content['annotations'][2].update(bbox=[-2, 5, 20, 10]), ('train',))
    before = {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}
    out = tmp_path / 'clean'
    checked = mnv4_mm.check(root, fix=out)
    assert checked.counts['images'].dropped == 1
    assert {path: path.read_bytes() for path in root.rglob('*') if path.is_file()} == before
    again = examine_detection(out)
    assert again.checked.findings == ()
    assert again.classes == ('cat', 'dog')
    assert score_of_the_truth(again) == pytest.approx(1)
    contents = [json.loads(layout.train.annotations.read_text()) for layout in (examine_detection(root), again)]
    assert contents[0]['annotations'] == contents[1]['annotations']
    assert [i['file_name'] for i in contents[1]['images']] == [f'images/train/{i:04}.jpg' for i in (1, 2, 4, 5, 6)]
    for image in contents[1]['images']:
        assert (out / image['file_name']).read_bytes() == (
            root / image['file_name'].removeprefix('images/')
        ).read_bytes()


@pytest.mark.parametrize(
    ('out', 'message'),
    [('mine/clean', 'is inside of'), ('mine', 'not an empty folder'), ('file', 'not an empty folder')],
)
def test_a_cleaned_copy_overwrites_nothing(root, out, message):
    (root.parent / 'file').write_text('x')
    with pytest.raises(UserError, match=message):
        mnv4_mm.check(root, fix=root.parent / out)


def test_what_cannot_be_trained_on_is_not_copied(root, tmp_path):
    shares(root)
    with pytest.raises(UserError, match='look like shares'):
        mnv4_mm.check(root, fix=tmp_path / 'clean')
    assert not (tmp_path / 'clean').exists()


def test_nothing_heavy_is_imported(root):
    script = (
        'import sys, mnv4_mm; print(mnv4_mm.check(sys.argv[1]).task, '
        '{name.partition(".")[0] for name in sys.modules} & {"torch", "mmengine", "mmdet", "mmseg"})'
    )
    output = subprocess.run([sys.executable, '-c', script, root], capture_output=True, text=True, check=True).stdout
    assert output == 'detection set()\n'
