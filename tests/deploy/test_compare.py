import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.apis.model import load_model
from mnv4_mm.cli import main
from mnv4_mm.config.data import innermost_dataset, with_data_roots
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy import compare as comparing
from mnv4_mm.deploy.compare import compare
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.difference import detection_difference, difference
from mnv4_mm.deploy.evaluator import PredictorEvaluator, metric_value
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import Graph, build_graph, reference
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image, write_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Selection, read_meta, sidecar
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.runtime.results import Detections, select


@pytest.fixture(scope='module')
def exported(lraspp, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('compared')
    checkpoint = shutil.copy(lraspp, folder / 'net.pth')
    export(str(checkpoint), ['onnx'], size=(128, 160), log=lambda line: None)
    export(str(checkpoint), ['onnx'], size=(128, 160), kind='logits', log=lambda line: None)
    return Path(checkpoint)


def test_right_files_pass(exported, call_tool, tmp_path):
    done = call_tool('compare.py', exported, '--rounds', 1, '--out', tmp_path / 'table.json')
    assert done.returncode == 0, done.stderr
    rows = {row['name']: row for row in json.loads((tmp_path / 'table.json').read_text())['rows']}
    judged = [rows[f'net_{kind}_fp32_128x160.onnx'] for kind in ('class_map', 'logits')]
    for row in judged:
        assert row['verdict'] == 'ok'
        assert row['raw']['largest'] < 1e-3
        assert all(value > 0 for speed in row['speed'] for value in speed)
        assert row['memory'] > 1
        assert row['name'] in done.stdout
    tested = evaluate_files(None, str(exported), work_dir=str(tmp_path / 'test'))['ade-mini/mIoU']
    assert rows['PyTorch, as mnv4 test']['metric'] == pytest.approx(tested, abs=1e-12)
    # A letterbox of 128x160 is not the pipeline of the config: its effect is not counted as one of the conversion.
    reference_row = next(row for name, row in rows.items() if name.startswith('PyTorch, 128x160 letterbox'))
    assert judged[0]['metric'] - reference_row['metric'] == pytest.approx(judged[0]['to_pytorch'])


def test_a_wrong_file_fails(exported, call_tool, tmp_path):
    """Its weights are not those of the checkpoint that its metadata names, as after an error of a converter."""
    content = torch.load(exported, weights_only=True)
    name = next(key for key in content['state_dict'] if key.endswith('conv_seg.weight'))
    content['state_dict'][name][3] *= 1.1
    torch.save(content, tmp_path / 'other.pth')
    wrong = export(str(tmp_path / 'other.pth'), ['onnx'], size=(128, 160), kind='logits', log=lambda line: None)[0]
    source = read_meta(exported.parent / 'exported/net_logits_fp32_128x160.onnx').source
    sidecar(wrong).write_text(dataclasses.replace(read_meta(wrong), source=source).to_json())
    right = exported.parent / 'exported/net_logits_fp32_128x160.onnx'
    # The checkpoint is found in the folder above.
    done = call_tool('compare.py', right, wrong, '--rounds', 0)
    assert done.returncode == 1
    assert '| ok |' in done.stdout
    assert 'outputs differ by' in done.stdout


def test_mistakes_are_one_line(exported, ssdlite, tmp_path):
    file = str(exported.parent / 'exported/net_logits_fp32_128x160.onnx')
    with pytest.raises(UserError, match='exported from another checkpoint'):
        compare(str(ssdlite), [file])
    with pytest.raises(UserError, match='no exported files'):
        compare(str(ssdlite))
    with pytest.raises(UserError, match='must not be negative'):
        compare(str(exported), [file], tolerance=-1)
    with pytest.raises(UserError, match='no file'):
        compare(str(exported), [str(tmp_path / 'gone.onnx')])
    with pytest.raises(UserError, match='no checkpoint file'):
        compare(str(tmp_path / 'gone.pth'), [file])
    with pytest.raises(UserError, match=r'no checkpoint file|no exported files'):
        compare('.')
    with pytest.raises(UserError, match='no folder'):
        compare(str(exported), [file], out=str(tmp_path / 'gone' / 'table.json'))


def test_detections_of_an_untrained_net_are_inconclusive(ssdlite, tmp_path, photos):
    model = load_model(str(ssdlite), device='cpu')
    meta = describe(model, TARGETS['onnx'])
    for convolutions in model.bbox_head.cls_convs:
        for parameter in convolutions.parameters():
            torch.nn.init.zeros_(parameter)  # all scores alike
    pytorch = reference(model, meta)
    path = tmp_path / 'net.onnx'
    parts = TARGETS['onnx'].convert(build_graph(model, meta), path, 'fp32')
    assert parts == [path]
    predictor = Predictor(meta, TARGETS['onnx'].runtime.session(path, meta))
    batch = build_graph(model, meta).example().numpy()
    assert 'untrained net' in difference(pytorch, predictor, [batch]).inconclusive


def test_a_class_map_of_one_class_is_inconclusive(exported):
    predictor = load(exported.parent / 'exported/net_class_map_fp32_128x160.onnx')
    batch = Graph(torch.nn.Identity(), predictor.meta).example().numpy()
    height, width = predictor.meta.input.size
    logits = np.zeros((1, 150, height // 8, width // 8), np.float32)
    logits[:, 0] = 1
    pytorch = Predictor(predictor.meta, lambda batch: [logits])
    file = Predictor(predictor.meta, lambda batch: [np.zeros((1, height, width), np.uint8)])
    assert 'same class everywhere' in difference(pytorch, file, [batch]).inconclusive


def test_no_detections_have_an_ap_of_0():
    evaluator = PredictorEvaluator(with_data_roots(load_config('mnv4_ssdlite_coco-mini')))
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert evaluator.score(lambda image: nothing) == 0


def test_the_metric_is_that_of_tools_test():
    cfg = with_data_roots(load_config('mnv4_lraspp_ade20k-mini'))
    cfg.test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])  # in percent
    assert PredictorEvaluator(cfg).cfg.test_evaluator.type == 'ExactIoUMetric'
    assert cfg.test_evaluator.type == 'IoUMetric'
    with pytest.raises(UserError, match='computes mDice, mAcc; mIoU is needed'):
        metric_value(dict(mDice=0.5, mAcc=0.5), 'mIoU')


@pytest.mark.parametrize(('name', 'value'), [('bbox_mAP', -1.0), ('mIoU', math.nan)])
def test_a_metric_without_ground_truth_is_one_line(name, value):
    with pytest.raises(UserError, match=f'no ground truth to compute {name} from'):
        metric_value({f'mine/{name}': value}, name)


def test_data_without_boxes_is_one_line(tmp_path):
    """Also for a net without detections, for which there are no metrics at all."""
    cfg = with_data_roots(load_config('mnv4_ssdlite_coco-mini'))
    dataset = innermost_dataset(cfg.test_dataloader.dataset)
    ground_truth = json.loads((Path(dataset.data_root) / dataset.ann_file).read_text())
    dataset.ann_file = str(tmp_path / 'empty.json')
    Path(dataset.ann_file).write_text(json.dumps(ground_truth | dict(annotations=[])))
    with pytest.raises(UserError, match='no boxes to compute bbox_mAP with'):
        PredictorEvaluator(cfg)


def test_an_out_that_is_a_folder_is_one_line(tmp_path, exported):
    with pytest.raises(UserError, match='a folder'):
        compare(str(exported), out=str(tmp_path))


def detections(*rows):
    """Make detections from rows of (box, score, label)."""
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(np.float32(boxes), np.float32(scores), np.int64(labels))


def test_detections_are_matched_one_to_one():
    selection = Selection(score_thr=0.05, iou_thr=0.5, max_per_img=3, min_size=-1, candidates=1000)
    box = [10.0, 10, 50, 50]
    one, two, last = (box, 0.9, 1), ([60.0, 60, 90, 90], 0.8, 1), ([5.0, 5, 20, 20], 0.3, 0)
    expected = detections(one, two, last)
    assert detection_difference(expected, expected, selection, 320) == 0
    # The same detection three times matches one of them only.
    assert detection_difference(expected, detections(one, one, one), selection, 320) > 0.5
    # At the end of a full list, and near the threshold, a detection may be in one list only.
    assert detection_difference(expected, detections(one, two, ([7.0, 70, 90, 95], 0.3002, 2)), selection, 320) == 0
    assert detection_difference(expected, detections(one, two, ([7.0, 70, 90, 95], 0.4, 2)), selection, 320) > 0.3
    assert detection_difference(detections(one, two), detections(one, two, (box, 0.0505, 3)), selection, 320) == 0
    moved = ([10.0, 10, 50, 51.6], 0.9, 1)
    assert detection_difference(expected, detections(moved, two, last), selection, 320) == pytest.approx(0.005)


def test_an_image_without_detections_does_not_make_it_inconclusive(ssdlite, photos):
    model = load_model(str(ssdlite), device='cpu')
    meta = describe(model, TARGETS['onnx'])
    pytorch = reference(model, meta)
    image_batch = prepare(read_image(photos[0]), meta.input, meta.resize)[0]
    empty = [np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)]

    def none(batch):
        return [value * 0 for value in pytorch.session(batch)]

    def run(batch):
        return pytorch.session(batch) if batch.any() else none(batch)

    def found(batch):
        if not batch.any():
            return empty
        boxes, scores = run(batch)
        best = select(boxes[0], scores[0], meta.selection)
        return [best.boxes, best.scores, best.labels]

    both = Predictor(pytorch.meta, run), Predictor(meta, found)
    blank = np.zeros_like(image_batch)
    assert difference(*both, [image_batch, blank]).inconclusive == ''
    assert difference(*both, [image_batch, blank]).largest == 0
    assert 'untrained net' in difference(*both, [blank]).inconclusive


def test_a_file_that_fails_while_running_costs_its_own_row_only(exported, monkeypatch):
    def broken(path, threads=None):
        predictor = load(path, threads)
        if 'logits' in Path(path).name:
            return Predictor(predictor.meta, lambda batch: [np.zeros((1, 150, 1, 1), np.float32)])
        return predictor

    monkeypatch.setattr(comparing, 'load', broken)
    rows = {row.name: row for row in compare(str(exported), rounds=0, log=lambda line: None)}
    assert rows['net_class_map_fp32_128x160.onnx'].verdict == 'ok'
    assert rows['net_logits_fp32_128x160.onnx'].verdict.startswith('fails: outputs of shape')
    assert not rows['net_logits_fp32_128x160.onnx'].passes


def test_reduced_jpeg_images_cost_half_a_point_at_most(repository, tmp_path, capsys):
    """BCCD's images enlarged to 1280x960, of which half is enough for the input of 320x256."""
    checkpoint, source, data = str(repository / 'examples/bccd.pth'), repository / 'data/mini/bccd', tmp_path / 'bccd'
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (data / folder).mkdir(parents=True)
    for split in ('train', 'val'):
        names = (source / f'ImageSets/Main/{split}.txt').read_text().split()[:30]
        (data / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names))
        for name in names:
            image = read_image(source / f'JPEGImages/{name}.jpg')
            write_image(data / f'JPEGImages/{name}.jpg', cv2.resize(image, (1280, 960), interpolation=cv2.INTER_CUBIC))
            labels = (source / f'Annotations/{name}.xml').read_text()
            doubled = re.sub(r'(?<=>)\d+(?=</([xy]m|width|height))', lambda found: str(2 * int(found[0])), labels)
            (data / f'Annotations/{name}.xml').write_text(doubled)
    (file,) = export(checkpoint, ['onnx'], out_dir=str(tmp_path), log=lambda line: None)
    quiet, options = lambda line: None, dict(data=str(data), rounds=0, fast_jpeg=True)
    whole, fast = compare(checkpoint, [str(file)], **options, log=quiet)[-2:]
    assert (whole.name, fast.name) == (file.name, f'{file.name}, fast JPEG')
    assert whole.passes
    assert fast.passes
    assert 0 < abs(fast.metric - whole.metric) < 0.005
    assert fast.verdict == 'ok'
    limit = abs(fast.to_pytorch) / 2
    strict = compare(checkpoint, [str(file)], **options, int8_tolerance=limit, log=quiet)[-1]
    assert not strict.passes
    assert strict.verdict.startswith('bbox_mAP differs by')
    assert main(['compare', checkpoint, str(file), '--data', str(data), '--rounds', '2', '--fast-jpeg']) == 0
    assert re.search(r'fast JPEG .*\| ok; an image is read and resized in [\d.]+ ms instead', capsys.readouterr().out)


def test_images_that_are_not_reduced_are_not_measured(exported, monkeypatch):
    rows = compare(str(exported), rounds=0, fast_jpeg=True, log=lambda line: None)
    fast = [row for row in rows if 'fast JPEG' in row.name]
    assert len(fast) == 2
    assert all(row.passes and row.metric is not None and row.verdict == 'ok' for row in fast)
    monkeypatch.setattr(comparing, 'is_reduced', lambda *_: False)
    rows = compare(str(exported), rounds=0, fast_jpeg=True, log=lambda line: None)
    fast = [row for row in rows if 'fast JPEG' in row.name]
    assert all(row.passes and row.metric is None and row.verdict.startswith('not measured') for row in fast)


@pytest.fixture
def reads(monkeypatch):
    """Files that ``torch.load`` reads in this process."""
    files, load_file = [], torch.load

    def counted(file, *args, **kwargs):
        files.append(str(file))
        return load_file(file, *args, **kwargs)

    monkeypatch.setattr(torch, 'load', counted)
    return files


def test_the_checkpoint_is_read_once(exported, reads):
    rows = compare(str(exported), rounds=0, log=lambda line: None)
    assert len(rows) > 3
    assert reads == [str(exported)]


def test_exporting_reads_the_checkpoint_once(exported, reads, tmp_path):
    export(str(exported), ['onnx'], size=(64, 64), out_dir=str(tmp_path), log=lambda line: None)
    assert reads == [str(exported)]


def test_the_table_is_printed_even_if_latency_cannot_be_measured(exported, monkeypatch):
    def refuse(*_):
        raise RuntimeError('no time')

    monkeypatch.setattr(comparing, 'measure_speed', refuse)
    lines = []
    with pytest.raises(UserError, match=r'--rounds 0 leaves them out.*no time'):
        compare(str(exported), rounds=2, log=lines.append)
    assert sum('| ok |' in line for line in lines) == 2


def test_nan_outputs_are_infinitely_different(exported):
    predictor = load(exported.parent / 'exported/net_logits_fp32_128x160.onnx')
    pytorch = reference(load_model(str(exported), device='cpu'), predictor.meta)
    broken = Predictor(
        predictor.meta, lambda batch: [np.full_like(value, np.nan) for value in predictor.session(batch)]
    )
    batch = Graph(torch.nn.Identity(), predictor.meta).example().numpy()
    assert difference(pytorch, broken, [batch]).largest == float('inf')
