"""``mnv4 check``: what it prints, what it writes, its exit code."""

import json
import shutil

import pytest

import mnv4_mm
from mnv4_mm.cli import main
from mnv4_mm.errors import UserError

CONFIG = 'mnv4_ssdlite_coco-mini'


@pytest.fixture
def root(tmp_path, repository):
    """Eight training and four validation images in COCO's layout."""
    source = repository / 'data/mini/coco'
    for split, count in (('train', 8), ('val', 4)):
        content = json.loads((source / f'annotations/instances_{split}2017.json').read_text())
        content['images'] = content['images'][:count]
        ids = {image['id'] for image in content['images']}
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]
        used = {a['category_id'] for a in content['annotations']} | {1}
        content['categories'] = [c for c in content['categories'] if c['id'] in used | {1}]
        path = tmp_path / f'mine/annotations/instances_{split}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for image in content['images']:
            target = tmp_path / 'mine' / split / image['file_name']
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source / f'{split}2017' / image['file_name'], target)
    categories = {
        c['id']: c
        for split in ('train', 'val')
        for c in json.loads((tmp_path / f'mine/annotations/instances_{split}.json').read_text())['categories']
    }
    for split in ('train', 'val'):
        path = tmp_path / f'mine/annotations/instances_{split}.json'
        path.write_text(json.dumps(dict(json.loads(path.read_text()), categories=list(categories.values()))))
    return tmp_path / 'mine'


def break_box(root, count=1):
    path = root / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    for annotation in content['annotations'][:count]:
        annotation['bbox'][2] = 0
    path.write_text(json.dumps(content))
    return len(content['annotations'])


def test_valid_data(root, capsys, tmp_path):
    assert main(['check', str(root), '--report', str(tmp_path / 'sheet.html')]) == 0
    output = capsys.readouterr()
    assert 'COCO JSON' in output.out
    assert '8 train images' in output.out
    assert 'person' in output.out
    assert output.err == ''
    assert (tmp_path / 'sheet.html').read_text().startswith('<!doctype html>')


def test_what_is_broken_is_named_and_may_be_left_out(root, capsys, tmp_path):
    break_box(root, 3)
    assert main(['check', str(root)]) == 2
    output = capsys.readouterr()
    assert (
        'dropped: 3 times box-empty: the box is left out (first: annotations/instances_train.json, annotation'
        in output.out
    )
    assert output.err.count('\n') == 1
    assert 'would be left out, more than 1 %' in output.err
    assert main(['check', str(root), '--allow-dropped']) == 0
    assert main(['check', str(root), '--fix', str(tmp_path / 'clean')]) == 0
    assert f'cleaned copy: {tmp_path / "clean"}' in capsys.readouterr().out
    assert main(['check', str(tmp_path / 'clean')]) == 0
    assert main(['check', str(root), '--fix', str(tmp_path / 'clean')]) == 2
    assert 'not an empty folder' in capsys.readouterr().err


def test_masks(repository, capsys, tmp_path):
    assert main(['check', str(repository / 'data/mini/ade'), '--task', 'segmentation']) == 0
    assert 'labelled pixels' in capsys.readouterr().out


def test_what_a_config_would_train_on(root, capsys):
    assert main(['check', str(root), '--config', CONFIG]) == 0
    output = capsys.readouterr().out
    assert 'will be trained on' in output
    checked = mnv4_mm.check(root, config=CONFIG)
    assert any('smaller than half the smallest anchor (48 pixels) at 320x320' in note for note in checked.notes)
    with pytest.raises(UserError, match='is for detection, not for segmentation'):
        mnv4_mm.check(root, config=CONFIG, task='segmentation')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['{tmp}/gone'], 'no folder'),
        (['{tmp}'], 'is empty; expected one of'),
        (['{root}', '--report', '{tmp}/sheet.pdf'], 'name a .html file'),
        (['{root}', '--report', '{root}/sheet.html'], 'is inside of'),
        (['{root}', '--fix', '{root}/clean'], 'is inside of'),
        (['{root}', '--fix', '{root}/annotations/instances_train.json'], 'not an empty folder'),
        (['{root}', '--task', 'pose'], "invalid choice: 'pose'"),
        (['{root}', '--config', 'mnv4_ssdlight'], 'near: mnv4_ssdlite_coco'),
        (['{root}', '--report', ''], 'empty'),
        ([''], 'empty'),
    ],
)
def test_mistakes(root, capsys, tmp_path, arguments, message):
    (tmp_path / 'empty').mkdir()
    places = {'{tmp}': str(tmp_path / 'empty'), '{root}': str(root)}
    for place, path in places.items():
        arguments = [argument.replace(place, path) for argument in arguments]
    before = sorted(tmp_path.rglob('*'))
    assert main(['check', *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert sorted(tmp_path.rglob('*')) == before
