import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.apis.infer import load_model
from mnv4_mm.deploy.compare import compare
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.difference import difference
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import Graph, build_graph, reference
from mnv4_mm.deploy.meta import read_meta, sidecar
from mnv4_mm.deploy.predictor import Predictor
from mnv4_mm.deploy.targets import TARGETS, load
from mnv4_mm.errors import UserError


@pytest.fixture(scope='module')
def exported(lraspp, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('compared')
    checkpoint = shutil.copy(lraspp, folder / 'net.pth')
    export(str(checkpoint), ['onnx'], size=(128, 160), say=lambda line: None)
    export(str(checkpoint), ['onnx'], size=(128, 160), kind='logits', say=lambda line: None)
    return Path(checkpoint)


def test_right_files_pass(exported, run_tool, tmp_path):
    done = run_tool('compare.py', exported, '--rounds', 2, '--out', tmp_path / 'table.json')
    assert done.returncode == 0, done.stderr
    rows = {row['name']: row for row in json.loads((tmp_path / 'table.json').read_text())['rows']}
    judged = [rows[f'net_{kind}_fp32.onnx'] for kind in ('class_map', 'logits')]
    for row in judged:
        assert row['verdict'] == 'ok'
        assert row['raw']['largest'] < 1e-3
        assert all(value > 0 for speed in row['speed'] for value in speed)
        assert row['memory'] > 1
        assert row['name'] in done.stdout
    tested = evaluate_files(None, str(exported), work_dir=str(tmp_path / 'test'))['ade-mini/mIoU']
    assert rows['PyTorch, as tools/test.py']['metric'] == pytest.approx(tested, abs=1e-12)
    # A letterbox of 128x160 is not the config's pipeline: its cost stands apart from the conversion's.
    same = next(row for name, row in rows.items() if name.startswith('PyTorch, 128x160 letterbox'))
    assert judged[0]['metric'] - same['metric'] == pytest.approx(judged[0]['to_pytorch'])


def test_a_wrong_file_fails(exported, run_tool, tmp_path):
    """Its weights are not the checkpoint's, though its JSON says so: as a converter's mistake would look."""
    content = torch.load(exported, weights_only=True)
    name = next(key for key in content['state_dict'] if key.endswith('conv_seg.weight'))
    content['state_dict'][name][3] *= 1.1
    torch.save(content, tmp_path / 'other.pth')
    wrong = export(str(tmp_path / 'other.pth'), ['onnx'], size=(128, 160), kind='logits', say=lambda line: None)[0]
    beside = json.loads(sidecar(wrong).read_text())
    beside['source']['sha256'] = read_meta(exported.parent / 'exported/net_logits_fp32.onnx').source['sha256']
    sidecar(wrong).write_text(json.dumps(beside))
    done = run_tool('compare.py', exported, wrong, '--rounds', 0)
    assert done.returncode == 1
    assert 'outputs differ by' in done.stdout


def test_mistakes_are_one_line(exported, ssdlite, tmp_path):
    file = str(exported.parent / 'exported/net_logits_fp32.onnx')
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


def test_detections_of_an_untrained_net_prove_nothing(ssdlite, tmp_path, photos):
    model = load_model(str(ssdlite), device='cpu')
    meta = describe(model, TARGETS['onnx'])
    for convolutions in model.bbox_head.cls_convs:
        for parameter in convolutions.parameters():
            torch.nn.init.zeros_(parameter)  # all scores alike
    by = reference(model, meta)
    path = tmp_path / 'net.onnx'
    parts = TARGETS['onnx'].convert(build_graph(model, meta), path, 'fp32')
    assert parts == [path]
    predictor = Predictor(meta, TARGETS['onnx'].session(path, meta))
    batch = build_graph(model, meta).example().numpy()
    assert 'untrained net' in difference(by, predictor, [batch]).vacuous


def test_outputs_that_are_no_numbers_are_seen(exported):
    predictor = load(exported.parent / 'exported/net_logits_fp32.onnx')
    by = reference(load_model(str(exported), device='cpu'), predictor.meta)
    broken = Predictor(
        predictor.meta, lambda batch: [np.full_like(value, np.nan) for value in predictor.session(batch)]
    )
    batch = Graph(torch.nn.Identity(), predictor.meta).example().numpy()
    assert difference(by, broken, [batch]).largest == float('inf')
