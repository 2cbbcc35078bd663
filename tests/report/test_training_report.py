"""The report on a training run: its numbers, its page and its model card."""

import dataclasses
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from stub_checkpoint import write_stub_checkpoint

from mnv4_mm.cli import main
from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.findings import KINDS, Finding
from mnv4_mm.engine.coco_metric import FastCocoMetric
from mnv4_mm.errors import UserError
from mnv4_mm.images import write_image
from mnv4_mm.report import class_maps, detections
from mnv4_mm.report.content import ClassResult, Confusion, DataSummary, Example, Export, Model, Report, SplitSummary
from mnv4_mm.report.data import group_findings
from mnv4_mm.report.page import chart, escape_markdown, write_card, write_page
from mnv4_mm.report.run import COMPARED, _compared
from mnv4_mm.report.training import write_report
from mnv4_mm.weights.work_dir import find_checkpoint

CLASSES = ('cat', 'dog', 'cow')
EVIL = '<script>alert("x")</script>\' | `a` $$ \u0439'


def box(number, image, category, x, crowd=0):
    return dict(id=number, image_id=image, category_id=category, bbox=[x, 0, 10, 10], area=100, iscrowd=crowd)


def detection(image, category, x, score):
    return dict(image_id=image, category_id=category, bbox=[x, 0, 10, 10], score=score)


@pytest.fixture
def ground_truth(tmp_path):
    """Three images with cats (id 4) and dogs (id 9), one group of cats, no cow (id 1)."""
    boxes = [box(1, 1, 4, 0), box(2, 1, 9, 20), box(3, 2, 4, 0), box(4, 2, 4, 40), box(5, 2, 4, 80, crowd=1)]
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=100, height=20) for i in (1, 2, 3)],
        annotations=boxes,
        categories=[dict(id=i, name=name) for i, name in ((9, 'dog'), (4, 'cat'), (1, 'cow'))],
    )
    path = tmp_path / 'val.json'
    path.write_text(json.dumps(content))
    return path


def test_ap_of_classes_is_that_of_mnv4_test(tmp_path):
    """In images with more than 100 boxes, AP with 100 detections differs from AP with 1000."""
    rng = np.random.default_rng(0)
    places = [(x, y) for x in range(0, 600, 30) for y in range(0, 210, 30)]  # 140 boxes in each image
    boxes = [
        dict(id=len(places) * image + i, image_id=image, category_id=4 + i % 30 // 28, bbox=[x, y, 20, 20], area=400)
        for image in (0, 1)
        for i, (x, y) in enumerate(places)
    ]
    content = dict(
        images=[dict(id=image, file_name=f'{image}.jpg', width=600, height=210) for image in (0, 1)],
        annotations=[dict(one, iscrowd=0) for one in boxes],
        categories=[dict(id=4, name='cat'), dict(id=5, name='dog')],
    )
    path = tmp_path / 'val.json'
    path.write_text(json.dumps(content))
    found = [
        dict(image_id=one['image_id'], category_id=one['category_id'], bbox=[x + shift, y, w, h], score=score)
        for one in boxes
        for (x, y, w, h), shift, score in [(one['bbox'], rng.integers(0, 7), rng.random())]
    ]
    scores = detections.analyse(path, found, ('cat', 'dog')).scores
    metric = FastCocoMetric(str(path), classwise=True)
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    for image in (0, 1):
        here = [one for one in found if one['image_id'] == image]
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (one['bbox'] for one in here)], float)
        predicted = dict(
            bboxes=torch.from_numpy(corners),
            scores=torch.tensor([one['score'] for one in here], dtype=torch.float64),
            labels=torch.tensor([one['category_id'] - 4 for one in here]),
        )
        metric.process({}, [dict(img_id=image, ori_shape=(210, 600), pred_instances=predicted)])
    metrics = metric.evaluate(2)
    of_cats, of_dogs = (metrics[f'coco/{name}_precision'] for name in ('cat', 'dog'))
    assert [row['AP'] for row in scores] == pytest.approx([of_cats, of_dogs], abs=1e-12)
    assert metrics['coco/bbox_mAP'] < (of_cats + of_dogs) / 2 - 0.01  # mAP is that of 100 detections
    for name, key in (('AP50', 'mAP_50'), ('AP75', 'mAP_75')):
        assert sum(row[name] for row in scores) / 2 == pytest.approx(metrics[f'coco/bbox_{key}'], abs=1e-12)


FOUND = [
    detection(1, 4, 0, 0.9),  # a cat
    detection(1, 4, 20, 0.8),  # a dog taken for a cat
    detection(2, 4, 1, 0.7),  # a cat, a pixel beside
    detection(2, 4, 80, 0.6),  # in the group: neither right nor wrong
    detection(3, 9, 50, 0.5),  # nothing
    detection(2, 4, 41, 0.4),  # a cat
    detection(1, 9, 20, 0.1),  # a dog, behind the cat there
    detection(3, 4, 0, 0.05),  # nothing
]


def test_ap_per_class_is_that_of_pycocotools(ground_truth):
    analysis = detections.analyse(ground_truth, FOUND, CLASSES)
    coco = COCO(ground_truth)
    evaluation = COCOeval(coco, coco.loadRes([dict(one) for one in FOUND]), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0, -1]  # (IoU, recall, class by id: cow, cat, dog)
    for name, scores in zip(CLASSES, analysis.scores, strict=True):
        k = ('cow', 'cat', 'dog').index(name)
        if name == 'cow':
            assert scores == dict(AP=None, AP50=None, AP75=None, precision=None, recall=None)
            assert name not in analysis.precision_recall
            continue
        assert scores['AP'] == pytest.approx(precision[..., k].mean())
        assert scores['AP50'] == pytest.approx(precision[0, :, k].mean())
        assert scores['AP75'] == pytest.approx(precision[5, :, k].mean())
        curve = np.array(analysis.precision_recall[name])
        np.testing.assert_allclose(curve, np.stack([evaluation.params.recThrs, precision[0, :, k]], 1), atol=1e-4)
    assert analysis.counts == [3, 1, 0]


def test_threshold_and_confusion(ground_truth):
    """The best F1 is at 0.1: all 4 boxes are found, 2 detections are wrong. The one in the group is not counted."""
    analysis = detections.analyse(ground_truth, FOUND, CLASSES)
    assert analysis.threshold == pytest.approx(0.1)
    cat, dog, _ = analysis.scores
    assert (cat['precision'], cat['recall']) == (3 / 4, 1)
    assert (dog['precision'], dog['recall']) == (1 / 2, 1)
    assert analysis.confusion.names == [*CLASSES, 'background']
    assert analysis.confusion.counts == [[3, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]]
    assert analysis.confusion.mistakes() == [('background', 'dog', 2), ('dog', 'cat', 1)]
    results = {image.name: (image.correct, image.wrong, image.missed) for image in analysis.images}
    assert results == {'1.jpg': (2, 1, 0), '2.jpg': (2, 0, 0), '3.jpg': (0, 1, 0)}


@pytest.mark.parametrize('found', [[], [detection(3, 9, 50, 0.9)]], ids=['nothing', 'only wrong'])
def test_no_correct_detection(ground_truth, found):
    analysis = detections.analyse(ground_truth, found, CLASSES)
    assert analysis.threshold is None
    assert [scores['AP'] for scores in analysis.scores] == [0, 0, None]
    assert [scores['recall'] for scores in analysis.scores] == [0, 0, None]
    assert [row[-1] for row in analysis.confusion.counts] == [3, 1, 0, 0]


def test_nothing_can_be_measured_without_boxes(ground_truth):
    content = json.loads(ground_truth.read_text())
    ground_truth.write_text(json.dumps(content | dict(annotations=[])))
    for found in ([], FOUND):
        analysis = detections.analyse(ground_truth, found, CLASSES)
        assert analysis.threshold is None
        assert analysis.precision_recall == {}
        assert all(value is None for scores in analysis.scores for value in scores.values())


def test_confusion_of_class_maps(tmp_path):
    truth = [np.array([[0, 0, 1, 255]], np.uint8), np.array([[255, 255, 255, 255]], np.uint8)]
    predicted = [np.array([[0, 1, 1, 0]], np.uint8), np.zeros((1, 4), np.uint8)]

    class Masks(list):
        classes = CLASSES

        def name(self, index):
            return f'{index}.jpg'

    analysis = class_maps.analyse(Masks(zip(truth, predicted, strict=True)))
    assert analysis.confusion.counts == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert analysis.counts == [2, 1, 0]
    assert analysis.scores[0] == dict(IoU=0.5, precision=1, recall=0.5)
    assert analysis.scores[1] == dict(IoU=0.5, precision=0.5, recall=1)
    assert analysis.scores[2] == dict(IoU=None, precision=None, recall=None)
    assert [image.iou for image in analysis.images] == [0.5, None]


def checked(*findings):
    return CheckedData(Path('/data'), 'detection', 'COCO', CLASSES, findings)


def evil_report(folder):
    """A report in which every text that a user can choose has HTML and Markdown in it."""
    write_image(folder / 'images/best_1.jpg', np.zeros((8, 8, 3), np.uint8))
    points = [(0.0, 0.5), (1.0, 0.0)]
    return Report(
        title=EVIL,
        task='detection',
        created='2026-11-26 12:00 UTC',
        model=Model(EVIL, 'ab' * 32, 1.5, 2_000_000, 'epoch 3', True, EVIL, EVIL, EVIL, (320, 320)),
        metric='bbox_mAP',
        value=None,
        trained_on=0.5,
        metrics={'bbox_mAP_50': None},
        losses={EVIL: points},
        validation={EVIL: points},
        unit='epoch',
        classes=[ClassResult(EVIL, None, 3, dict(AP=0.25, AP50=None))],
        precision_recall={EVIL: points},
        threshold=0.4,
        confusion=Confusion([EVIL, 'background'], [[1, 2], [0, 0]], 'Rule.'),
        examples=[Example('best', EVIL, '1 correct', 'images/best_1.jpg', [(EVIL, (1, 2, 3))])],
        data=DataSummary(
            EVIL,
            EVIL,
            [SplitSummary('validation', 2, 3, 0, dict(small=1, medium=2, large=0))],
            [EVIL],
            dict(images=(1, 200)),
            group_findings(checked(Finding('unreadable-image', Path(EVIL), EVIL))),
        ),
        exports=[Export(EVIL, 'onnx', 'fp32', None, 2.5, 0.5, 0.0, (1.0, 0.5), EVIL)],
        versions={'torch': EVIL},
        commands=[('Train', f'mnv4 train {EVIL}')],
        notes=['A note.'],
    )


class Page(HTMLParser):
    """Collects the tags, the sources and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ''
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ('src', 'href', 'srcset', 'action')]
        assert not [name for name, _ in attributes if name.startswith('on')]

    def handle_data(self, data):
        self.text += data


def test_a_name_that_is_not_utf8_is_escaped(tmp_path):
    report = dataclasses.replace(evil_report(tmp_path), title='b\udce4r.jpg')
    write_page(report, tmp_path / 'index.html')
    assert 'b\\udce4r.jpg' in (tmp_path / 'index.html').read_text(encoding='utf-8')
    write_card(report, tmp_path / 'README.md')
    assert 'udce4r' in (tmp_path / 'README.md').read_text(encoding='utf-8')


def test_names_with_html_are_text(tmp_path):
    write_page(evil_report(tmp_path), tmp_path / 'index.html')
    page = Page((tmp_path / 'index.html').read_text(encoding='utf-8'))
    assert not {'script', 'iframe', 'object', 'link', 'b'} & set(page.tags) - {'b'}
    assert page.text.count(EVIL) > 12
    # Nothing is loaded from elsewhere.
    assert page.sources
    assert all(source.startswith('data:image/jpeg;base64,') for source in page.sources)
    assert 'url(' not in (tmp_path / 'index.html').read_text(encoding='utf-8')


def test_names_with_html_and_markdown_are_text_in_the_card(tmp_path):
    write_card(evil_report(tmp_path), tmp_path / 'README.md')
    text = (tmp_path / 'README.md').read_text(encoding='utf-8')
    assert '<script' not in text
    assert '`a`' not in re.sub('<pre>.*?</pre>', '', text, flags=re.S)
    assert '![best](images/best_1.jpg)' in text
    # The name breaks no table: all rows have as many cells as the head.
    for table in re.findall(r'(?:^\|.*\n)+', text, re.M):
        assert len({line.count('|') for line in table.splitlines()}) == 1, table
    assert escape_markdown('a\n<b> *c* | `d` & $e$') == 'a &lt;b&gt; &#42;c&#42; &#124; &#96;d&#96; &amp; &#36;e&#36;'


def test_what_cannot_be_measured_is_a_word(tmp_path):
    report = evil_report(tmp_path)
    write_page(report, tmp_path / 'index.html')
    write_card(report, tmp_path / 'README.md')
    for name in ('index.html', 'README.md'):
        text = (tmp_path / name).read_text(encoding='utf-8')
        assert text.count('not measurable') == 3  # AP and AP50 of the run, AP50 of the class
        assert 'nan' not in text.lower()
        assert 'None' not in text
    assert json.loads(report.to_json())['value'] is None


def test_a_chart_keeps_its_points():
    lines = chart('loss', {'a': [(0.0, 2.0), (10.0, 0.0)], 'empty': []}, 'step', bottom=0)
    (line,) = lines['lines']
    assert line['points'] == '48.0,10.0 468.0,260.0'
    assert [text for _, text in lines['x_ticks']] == ['0', '2', '4', '6', '8', '10']
    assert lines['y_ticks'][0] == (260, '0')
    long = chart('loss', {'a': [(float(i), 1.0) for i in range(5000)]}, 'step')['lines'][0]['points'].split()
    assert len(long) <= 401
    assert long[-1].startswith('468.0,')


def test_findings_are_grouped_by_rule():
    findings = [Finding('area-missing', Path('/data/a.json'), 'no area', f'annotation {i}') for i in range(3)]
    findings.insert(1, Finding('unreadable-image', Path('/elsewhere/b.jpg'), 'is truncated'))
    dropped, harmless = group_findings(checked(*findings))
    assert (dropped.rule, dropped.kind, dropped.count) == ('dropped', 'unreadable-image', 1)
    assert dropped.first == '/elsewhere/b.jpg: is truncated'
    assert (harmless.rule, harmless.count, harmless.first) == ('harmless', 3, 'a.json, annotation 0: no area')
    assert harmless.remedy == KINDS['area-missing'].remedy


def test_the_best_checkpoint_of_a_run_is_taken(tmp_path):
    with pytest.raises(UserError, match='no checkpoint in'):
        find_checkpoint(tmp_path)
    write_stub_checkpoint(tmp_path / 'other.pth')
    with pytest.raises(UserError, match='no checkpoint in'):
        find_checkpoint(tmp_path)
    write_stub_checkpoint(tmp_path / 'epoch_3.pth')
    assert find_checkpoint(tmp_path).name == 'epoch_3.pth'  # the run was killed before it wrote last_checkpoint
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')  # the folder has been moved
    assert find_checkpoint(tmp_path).name == 'epoch_3.pth'
    write_stub_checkpoint(tmp_path / 'best_bbox_mAP_epoch_2.pth')
    assert find_checkpoint(tmp_path).name == 'best_bbox_mAP_epoch_2.pth'
    assert find_checkpoint(tmp_path, best=False).name == 'epoch_3.pth'
    assert find_checkpoint(tmp_path / 'epoch_3.pth').name == 'epoch_3.pth'
    for damaged in (b'\xff\xfe', b'a' * 5000):
        (tmp_path / 'last_checkpoint').write_bytes(damaged)
        assert find_checkpoint(tmp_path, best=False).name == 'epoch_3.pth'


def test_a_damaged_best_checkpoint_is_replaced_by_another_with_a_warning(tmp_path):
    write_stub_checkpoint(tmp_path / 'epoch_3.pth')
    best = tmp_path / 'best_bbox_mAP_epoch_2.pth'
    best.write_bytes((tmp_path / 'epoch_3.pth').read_bytes()[:100])
    lines: list[str] = []
    assert find_checkpoint(tmp_path, log=lines.append).name == 'epoch_3.pth'
    assert lines[0].startswith(f'warning: skipped: {best} is truncated')
    assert lines[1:] == [f'warning: used instead: {tmp_path}/epoch_3.pth']
    (tmp_path / 'epoch_3.pth').write_bytes(b'')
    with pytest.raises(UserError, match=r'no checkpoint in .* can be read: .*best_bbox.* is truncated.*epoch_3.*empty'):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'required: WORK_DIR|CHECKPOINT'),
        (['gone'], 'no work directory or checkpoint gone'),
        (['{tmp}'], 'no checkpoint in {tmp}'),
        (['{tmp}/text.pth2'], 'is not a checkpoint'),
        (['{tmp}/text.pth2', '--data', 'gone'], 'is not a checkpoint'),
        (['{tmp}/run', '--data', 'gone'], 'no folder gone: name the folder of a data set'),
        (['{tmp}/run', '--out', '{tmp}/text.pth2/a'], 'cannot be made'),
        (['{tmp}/run', '--outt', 'x'], 'no option --outt of `mnv4 report`; near: --out'),
    ],
)
def test_mistakes(tmp_path, capsys, arguments, message):
    (tmp_path / 'text.pth2').write_text('no checkpoint')
    (tmp_path / 'run').mkdir()
    write_stub_checkpoint(tmp_path / 'run/epoch_1.pth')
    assert main(['report', *(argument.replace('{tmp}', str(tmp_path)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message.replace('{tmp}', str(tmp_path)) in error
    assert error.count('\n') == 1


@pytest.fixture(scope='module')
def detector(learned, tmp_path_factory):
    """The work directory of a trained detector with the report on it, as ``mnv4 report`` makes it."""
    folder = tmp_path_factory.mktemp('report') / 'my run'
    # Another test may have exported it already.
    shutil.copytree(learned('mnv4_ssdlite_coco-mini'), folder, ignore=shutil.ignore_patterns('exported'))
    write_report(folder)
    return folder


def test_report_on_a_detector(detector, few):
    content = json.loads((detector / 'report/report.json').read_text(encoding='utf-8'))
    metrics = json.loads((detector / 'held_out/metrics.json').read_text())
    assert content['title'] == 'my run'
    assert content['value'] == metrics['shapes/bbox_mAP'] > 0.2
    # AP of the table and of the headline are of one kind.
    ap = [row['scores']['AP'] for row in content['classes'] if row['scores']['AP'] is not None]
    assert np.mean(ap) == pytest.approx(content['value'], abs=1e-6)
    annotations = json.loads((few / 'annotations/instances_val.json').read_text())['annotations']
    assert sum(row['val'] for row in content['classes']) == len(annotations)
    assert sum(row['train'] for row in content['classes']) == len(annotations)  # training images are the same
    assert sum(map(sum, content['confusion']['counts'][:-1])) >= len(annotations)
    assert content['data']['splits'][1]['images'] == 4
    assert content['model']['parameters'] > 1e6
    assert content['model']['sha256'] == read_sha(find_checkpoint(detector))
    assert content['losses']['loss'][-1][1] < content['losses']['loss'][0][1]
    assert content['validation']['bbox_mAP']
    page = (detector / 'report/index.html').read_text(encoding='utf-8')
    names = [example['name'] for example in content['examples']]
    assert names
    assert page.count('<img src="data:image/jpeg;base64,') == len(names)
    assert f'{content["value"]:.3f}' in page
    assert (detector / 'report/README.md').is_file()
    for example in content['examples']:
        assert (detector / 'report' / example['image']).is_file()


def read_sha(path):
    from mnv4_mm.runtime.meta import sha256

    return sha256(path)


def test_a_report_made_anew_keeps_the_command_and_shows_what_was_exported(detector, tmp_path, monkeypatch, capsys):
    """Also a table of ``mnv4 compare`` beside the files; a table that is older than a file is not of it."""
    checkpoint = find_checkpoint(detector)
    folder = detector / 'exported'
    folder.mkdir()
    name = f'{checkpoint.stem}_nms_fp32.onnx'
    files = [folder / name, folder / COMPARED]
    for file in files:
        file.touch()
    row = dict(name=name, metric=0.5, to_pytorch=0.001, speed=[[1.0, 2.0, 3.0], [0.5, 1.0, 2.0]], verdict='ok')
    files[1].write_text(json.dumps(dict(metric='bbox_mAP', rows=[row])))
    former = detector / COMPARED  # of an earlier comparison, in the work directory
    former.write_text(json.dumps(dict(metric='bbox_mAP', rows=[{**row, 'metric': 0.1}])))
    for time, file in enumerate((files[0], former)):
        os.utime(file, (time, time))
    meta = SimpleNamespace(target='onnx', precision='fp32', input=SimpleNamespace(size=(320, 320)), files={name: ''})
    monkeypatch.setattr('mnv4_mm.report.run.exported_files', lambda *_: [files[0]])
    monkeypatch.setattr('mnv4_mm.report.run.read_meta', lambda _: meta)
    out = tmp_path / 'again'
    shutil.copytree(detector / 'report', out)
    text = (out / 'report.json').read_text(encoding='utf-8')
    earlier = json.loads(text)
    earlier['commands'][0] = ['Train', 'mnv4 train my-config --data x']
    (out / 'report.json').write_text(json.dumps(earlier))
    former.write_text(former.read_text()[:-9])
    write_report(checkpoint, out=out)
    assert f'warning: {former} is not a table' in capsys.readouterr().err
    content = json.loads((out / 'report.json').read_text(encoding='utf-8'))
    assert content['commands'][0] == ['Train', 'mnv4 train my-config --data x']
    assert content['value'] == earlier['value']
    (export,) = content['exports']
    assert (export['metric'], export['latency'], export['verdict']) == (0.5, [1.0, 0.5], 'ok')
    assert 'not measured' not in (out / 'index.html').read_text(encoding='utf-8')


@pytest.mark.parametrize(
    'wrong',
    [
        dict(speed='x'),
        dict(speed='12'),
        dict(speed=5),
        dict(speed=[{}, {}]),
        dict(speed=[[1.0], ['1']]),
        dict(speed=dict(p50=1.0)),
        dict(metric='a'),
        dict(to_pytorch=[1]),
        dict(verdict=5),
    ],
)
def test_a_damaged_row_of_a_comparison_is_a_warning(wrong, tmp_path, capsys):
    """The rows of another, undamaged table are shown."""
    exported = tmp_path / 'exported'
    exported.mkdir()
    names = ('a.onnx', 'b.onnx')
    for name in names:
        (exported / name).touch()
    (tmp_path / COMPARED).write_text(json.dumps(dict(rows=[dict(name=names[0], metric=0.5, speed=[None, [1, 2, 3]])])))
    damaged = exported / COMPARED
    damaged.write_text(json.dumps(dict(rows=[dict(name=names[1], speed=[None, None]), {'name': names[0], **wrong}])))
    assert _compared(tmp_path) == {names[0]: dict(metric=0.5, to_pytorch=None, latency=None, verdict='')}
    assert capsys.readouterr().err.startswith(f'warning: {damaged} is not a table of `mnv4 compare`: ')


def test_report_on_a_segmenter(learned, few, tmp_path):
    """Confusion matrix and IoU from the files are those of the metric."""
    folder = learned('mnv4_lraspp_ade20k-mini')
    write_report(folder, out=tmp_path / 'out')
    content = json.loads((tmp_path / 'out/report.json').read_text(encoding='utf-8'))
    metrics = json.loads((tmp_path / 'out/held_out/metrics.json').read_text())
    assert content['value'] == metrics['shapes/mIoU'] > 0.2
    for row in content['classes']:
        assert row['scores']['IoU'] == pytest.approx(metrics.get(f'shapes/{row["name"]}_IoU'))
        assert row['train'] == row['val']  # the images are the same
    assert {example['kind'] for example in content['examples']} == {'best'}  # of four images all are shown as best
    assert 'a class map has none' in (tmp_path / 'out/index.html').read_text(encoding='utf-8')
    assert not (folder / 'report').exists()
