"""SSDLite with another size, a level of stride 8 and fitted anchors is exported like the shipped configs."""

import json

import pytest

from mnv4_mm.apis.model import load_model
from mnv4_mm.config.anchors import fit_anchors
from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.training import training_config
from mnv4_mm.deploy.difference import difference
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import reference
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.preprocess import prepare


@pytest.mark.parametrize('kind', ['raw', 'nms'])
def test_another_size_level_and_anchors_are_exported(kind, write_checkpoint, photos, tmp_path):
    if TARGETS['onnx'].absent(convert=True):
        pytest.skip(TARGETS['onnx'].absent(convert=True))
    cfg = training_config('mnv4_ssdlite_coco-mini', TrainOptions(work_dir='w', levels=8, size=[128, 160]))
    before = dict(cfg.model.bbox_head.anchor_generator)
    boxes = [dict(id=i, image_id=1, category_id=1, bbox=[9 * i, 7 * i, 30 + i, 40]) for i in range(1, 20)]
    images, categories = [dict(id=1, file_name='a.jpg', width=640, height=512)], [dict(id=1, name='person')]
    (tmp_path / 'boxes.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    innermost_dataset(cfg.train_dataloader.dataset).ann_file = str(tmp_path / 'boxes.json')
    fit_anchors(cfg)
    assert cfg.model.bbox_head.anchor_generator.min_sizes != before['min_sizes']
    checkpoint = tmp_path / 'net.pth'
    write_checkpoint(cfg, checkpoint)

    file = export(str(checkpoint), ['onnx'], out_dir=str(tmp_path), kind=kind, log=lambda line: None)[0]

    predictor = load(file)
    assert predictor.meta.input.size == (128, 160)
    images = [prepare(read_image(photo), predictor.meta.input, predictor.meta.resize)[0] for photo in photos[:3]]
    found = difference(reference(load_model(str(checkpoint), device='cpu'), predictor.meta), predictor, images)
    assert found.largest < (1e-4 if kind == 'raw' else 1e-3)
    assert not found.inconclusive
