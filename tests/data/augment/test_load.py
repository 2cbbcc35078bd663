"""The transforms that read files return what OpenMMLab's do, and take their place in every data loader."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mnv4_mm.config.load import load_config
from mnv4_mm.data.augment.load import LoadImage, LoadMask, with_one_reader
from mnv4_mm.engine.runner import SafeRunner
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image


@pytest.mark.parametrize('to_float32', [False, True])
def test_images_are_mmcvs(to_float32, repository):
    for path in sorted((repository / 'data/mini/coco/val2017').glob('*.jpg'))[:4]:
        theirs = LoadImageFromFile(to_float32=to_float32)(dict(img_path=str(path)))
        ours = LoadImage(to_float32=to_float32)(dict(img_path=str(path)))
        assert ours.keys() == theirs.keys()
        assert ours['img'].dtype == theirs['img'].dtype
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 3, 3: 255}])
def test_masks_are_mmsegs(reduce_zero_label, label_map, tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    indexed = Image.fromarray(values, 'P')
    indexed.putpalette(list(range(256)) * 3)
    indexed.save(tmp_path / 'indexed.png')
    cv2.imwrite(str(tmp_path / 'grey.png'), values)
    for name in ('indexed.png', 'grey.png'):
        inputs = dict(
            seg_map_path=str(tmp_path / name), reduce_zero_label=reduce_zero_label, label_map=label_map, seg_fields=[]
        )
        theirs, ours = LoadAnnotations()(dict(inputs, seg_fields=[])), LoadMask()(dict(inputs, seg_fields=[]))
        np.testing.assert_array_equal(ours['gt_seg_map'], theirs['gt_seg_map'])
        assert ours['gt_seg_map'].dtype == np.uint8
        assert ours['seg_fields'] == theirs['seg_fields'] == ['gt_seg_map']


def test_unreadable_files_are_one_line(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'text')
    for step, key in ((LoadImage(), 'img_path'), (LoadMask(), 'seg_map_path')):
        with pytest.raises(UserError, match=r'a\.png is not a readable image'):
            step({key: str(tmp_path / 'a.png'), 'reduce_zero_label': False})


def test_readers_are_replaced_unless_they_have_settings():
    s3 = dict(type='LoadImageFromFile', backend_args=dict(backend='petrel'))
    pipeline = [
        dict(type='LoadImageFromFile', backend_args=None),
        s3,
        dict(type='LoadAnnotations'),
        dict(type='Resize'),
    ]
    config = Config(dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)))).dataset
    for scope, annotations in (('mmdet', 'LoadAnnotations'), ('mmseg', 'LoadMask')):
        replaced = with_one_reader(config, scope)
        types = [step['type'] for step in replaced.dataset.pipeline]
        assert types == ['LoadImage', 'LoadImageFromFile', annotations, 'Resize']
    assert [step['type'] for step in config.dataset.pipeline] == [step['type'] for step in pipeline]
    boxes = dict(type='LoadAnnotations', with_bbox=True)
    assert with_one_reader(boxes, 'mmseg') == boxes


@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco-mini', 'mnv4_retinanet_coco', 'mnv4_lraspp_ade20k-mini'])
def test_the_runner_reads_by_them(name, repository, monkeypatch):
    monkeypatch.chdir(repository)
    cfg = load_config(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loader = dict(cfg.val_dataloader, num_workers=0, persistent_workers=False)
        if name == 'mnv4_retinanet_coco':
            root = repository / 'data/mini/coco'
            loader['dataset'].update(data_root='', ann_file=str(root / 'annotations/instances_val2017.json'))
            loader['dataset']['data_prefix'] = dict(img=str(root / 'val2017'))
        built = SafeRunner.build_dataloader(loader)
    types = [type(step).__name__ for step in built.dataset.pipeline.transforms]
    assert types[0] == 'LoadImage'
    assert ('LoadMask' in types) == (cfg.default_scope == 'mmseg')
    assert built.dataset[0]['inputs'].ndim == 3


@pytest.mark.filterwarnings('ignore::UserWarning')  # no weights, no folder for the visualizer
@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco-mini', 'mnv4_lraspp_ade20k-mini'])
def test_shipped_configs_keep_the_names_that_openmmlab_looks_for(name, few):
    from mmdet.apis import DetInferencer
    from mmseg.apis import MMSegInferencer

    image = str(min((few / 'val').glob('*.jpg')))
    if '_coco' in name:
        inferencer = DetInferencer(load_config(name), device='cpu', show_progress=False)
        assert len(inferencer(image, no_save_vis=True)['predictions']) == 1
    else:
        cfg = load_config(name)
        cfg.visualizer = dict(type='SegLocalVisualizer', name=name)  # it takes no other
        inferencer = MMSegInferencer(cfg, classes=('a',), palette=[[0, 0, 0]], device='cpu')
        inferencer.show_progress = False
        assert inferencer(image)['predictions'].shape == read_image(image).shape[:2]
