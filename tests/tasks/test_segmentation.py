"""Segmentation through the same tools as detection."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from end_to_end import IN_PROCESS
from mmengine.config import Config
from PIL import Image

from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.apis.infer import infer
from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.data import LOADERS, dataset_split, innermost_dataset, with_data, with_inference
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.training import training_config
from mnv4_mm.data.prepare_masks import prepare_masks
from mnv4_mm.deploy.export import _calibration_images
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import task_of

NAME = 'mnv4_lraspp_ade20k-mini'
HEADLINE = ['mnv4_lraspp_ade20k', 'mnv4_fpn_ade20k', 'mnv4_deeplabv3plus_ade20k', 'mnv4_segformer_ade20k']
ADE_TINY = Path(__file__).resolve().parents[3] / 'shared/data/ade_tiny'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, drawn):
    """A checkpoint as train.py writes it, after two steps on drawn shapes."""
    work_dir = tmp_path_factory.mktemp('run') / 'w'
    options = {**IN_PROCESS, 'train_dataloader.batch_size': 2, 'val_dataloader.dataset.indices': 4}
    train(NAME, data=str(drawn), work_dir=str(work_dir), iters=2, cfg_options=options)
    return str(work_dir / 'iter_2.pth')


@pytest.mark.parametrize('name', HEADLINE)
def test_own_data_reaches_loaders_evaluators_and_heads(name, drawn):
    cfg = with_data(load_config(name), prepare_masks(drawn))
    for loader, side in (('train_dataloader', 'training'), ('val_dataloader', 'validation')):
        split = dataset_split(cfg, loader)
        assert split.images == drawn / 'images' / side
        first = split.image_files()[0]
        assert (split.masks / f'{first.name}.png').resolve() == drawn / f'annotations/{side}/{first.stem}.png'
        dataset = innermost_dataset(cfg[loader].dataset)
        assert dataset.metainfo['classes'] == prepare_masks(drawn).classes
        assert (dataset.type, dataset.reduce_zero_label) == ('BaseSegDataset', True)
    heads = [cfg.model.decode_head, *([cfg.model.auxiliary_head] if 'auxiliary_head' in cfg.model else [])]
    assert [head.num_classes for head in heads] == [7] * len(heads)
    assert cfg.val_evaluator.prefix == 'shapes'  # never "ade20k"


def test_ade20ks_own_classes_keep_their_colours(tmp_path, repository):
    shutil.copytree(repository / 'data/mini/ade', tmp_path / 'ade')
    (tmp_path / 'ade/classes.txt').unlink()
    (tmp_path / 'ade/objectInfo150.txt').touch()
    cfg = with_data(load_config(NAME), prepare_masks(tmp_path / 'ade'))
    assert cfg.model.decode_head.num_classes == 150
    assert list(cfg.train_dataloader.dataset.metainfo.palette[0]) == [120, 120, 120]  # mmseg's wall


def test_lengths_are_counted_in_iterations():
    cfg = training_config('mnv4_segformer_ade20k', TrainOptions(iters=1600))
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (1600, 160)
    warm_up, poly = cfg.param_scheduler
    assert (warm_up.end, poly.begin, poly.end) == (15, 15, 1600)
    assert cfg.default_hooks.checkpoint.interval == 400
    tiny = training_config('mnv4_segformer_ade20k', TrainOptions(iters=1))
    assert (tiny.train_cfg.val_interval, tiny.default_hooks.checkpoint.interval) == (1, 1)
    with pytest.raises(UserError, match='counts in iters; use --iters'):
        training_config(NAME, TrainOptions(epochs=3))
    with pytest.raises(UserError, match='counts in epochs; use --epochs'):
        training_config('mnv4_ssdlite_coco', TrainOptions(iters=3))


def test_windows_are_for_segmentation():
    with pytest.raises(UserError, match='--inference is for segmentation'):
        with_inference(load_config('mnv4_ssdlite_coco'), 'slide')
    with pytest.raises(UserError, match='whole or slide'):
        with_inference(load_config(NAME), 'both')
    cfg = load_config(NAME)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(99, 88), stride=(9, 8))
    assert with_inference(cfg, 'slide').model.test_cfg.crop_size == (99, 88)
    assert with_inference(cfg, 'whole').model.test_cfg == dict(mode='whole')


def test_a_net_of_one_size_predicts_in_windows():
    cfg = with_backbone(load_config('mnv4_fpn_ade20k'), 'timm:efficientformerv2_s1')
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    assert cfg.model.backbone.img_size == (512, 512)


@pytest.mark.parametrize(('size', 'same'), [((160, 160), True), ((120, 160), True), ((160, 250), False)])
def test_whole_and_windows_are_equal_for_an_image_that_fits_one_window(checkpoint, size, same):
    whole, slide = (load_model(checkpoint, device='cpu', inference=mode) for mode in ('whole', 'slide'))
    torch.manual_seed(0)
    image = torch.randn(1, 3, *size)
    metas = [dict(ori_shape=size, img_shape=size, pad_shape=size)]
    with torch.no_grad():
        logits = [model.inference(image, [dict(metas[0])]) for model in (whole, slide)]
    assert logits[0].shape == logits[1].shape == (1, 7, *size)
    assert torch.equal(*logits) == same
    assert torch.isfinite(logits[1]).all()


def test_the_test_tool_draws_writes_and_scores_the_same(checkpoint, tmp_path, drawn):
    """Scored by numpy against the masks, the class maps that --out writes have the reported mIoU."""
    metrics = evaluate_files(
        None, checkpoint, out=str(tmp_path / 'maps'), show_dir=str(tmp_path / 'shown'), work_dir=str(tmp_path / 'w'),
        inference='slide',
    )  # fmt: skip
    assert json.loads((tmp_path / 'w/metrics.json').read_text()) == metrics
    masks = sorted((drawn / 'annotations/validation').iterdir())
    assert sorted(p.name for p in (tmp_path / 'maps').iterdir()) == [m.name for m in masks]
    both, either = np.zeros(8), np.zeros(8)
    for mask in masks:
        labels = np.array(Image.open(mask))
        with Image.open(tmp_path / 'maps' / mask.name) as image:
            assert image.mode == 'P'
            predicted = np.array(image)
        for value in range(1, 8):
            expected, detected = labels == value, (predicted == value) & (labels > 0)  # 0 is unlabelled
            both[value] += (expected & detected).sum()
            either[value] += (expected | detected).sum()
    present = either > 0
    assert metrics['shapes/mIoU'] == pytest.approx((both[present] / either[present]).mean(), abs=1e-9)
    shown = sorted((tmp_path / 'shown').iterdir())
    assert [p.stem for p in shown] == [m.stem for m in masks]
    height, width = cv2.imread(str(shown[0])).shape[:2]
    assert height >= 320
    assert width > 2 * 320  # ground truth, prediction, legend


def test_a_config_with_mmsegs_metric_and_hook_is_evaluated_too(checkpoint, tmp_path, drawn):
    from mnv4_mm.config.checkpoint import checkpoint_config
    from mnv4_mm.weights.checkpoint import read_checkpoint

    cfg = checkpoint_config(read_checkpoint(checkpoint))
    cfg.test_evaluator = cfg.val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    cfg.default_hooks.visualization = dict(type='SegVisualizationHook')
    cfg.dump(tmp_path / 'own.py')
    metrics = evaluate_files(
        str(tmp_path / 'own.py'), checkpoint, out=str(tmp_path / 'maps'), show_dir=str(tmp_path / 'shown'),
        work_dir=str(tmp_path / 'w'),
    )  # fmt: skip
    assert 0 <= metrics['mIoU'] <= metrics['aAcc'] <= 1  # not in percent
    assert len(list((tmp_path / 'maps').iterdir())) == len(list((tmp_path / 'shown').iterdir())) == 20


def test_data_is_not_overwritten(checkpoint, tmp_path, drawn):
    for argument, path, message in (
        ('show_dir', drawn / 'images/validation', 'overwritten'),
        ('show_dir', drawn / 'annotations/validation', 'overwritten'),
        ('out', drawn / 'annotations/validation', 'overwritten'),
        ('out', tmp_path / 'maps.json', 'name a folder'),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_files(None, checkpoint, work_dir=str(tmp_path), **{argument: str(path)})


def test_a_folder_of_images(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / 'in'
    folder.mkdir()
    cv2.imwrite(str(folder / 'a.jpg'), rng.integers(0, 255, (50, 70, 3), np.uint8))
    cv2.imwrite(str(folder / 'a.png'), rng.integers(0, 255, (40, 30), np.uint8))
    cv2.imwrite(str(folder / 'b.png'), rng.integers(0, 255, (3, 5, 4), np.uint8))
    path = infer(str(folder), checkpoint, out_dir=str(tmp_path / 'out'), inference='slide')
    content = json.loads(path.read_text())
    assert content['values'] == dict(disc=1, square=2, triangle=3, cross=4, ring=5, star=6, background=7)
    expected = [('a.jpg', 'class_maps/a.png'), ('a.png', 'class_maps/a.png.png'), ('b.png', 'class_maps/b.png')]
    assert [(i['file_name'], i['class_map']) for i in content['images']] == expected
    for image, size in zip(content['images'], ((70, 50), (30, 40), (5, 3)), strict=True):
        with Image.open(tmp_path / 'out' / image['class_map']) as file:
            assert (file.mode, file.size) == ('P', size)
            values = np.array(file)
        assert image['share'] == pytest.approx(
            {name: (values == v).mean() for name, v in content['values'].items() if (values == v).any()}
        )
        overlay = cv2.imread(str(tmp_path / 'out' / image['file_name']))
        assert overlay.shape[1] > size[0]


def test_a_video(checkpoint, tmp_path):
    video = tmp_path / 'in.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 48))
    for i in range(3):
        writer.write(np.full((48, 64, 3), 80 * i, np.uint8))
    writer.release()
    path = infer(str(video), checkpoint, out_dir=str(tmp_path / 'out'))
    assert [i['class_map'] for i in json.loads(path.read_text())['images']] == [
        f'class_maps/in.avi#{i}.png' for i in range(3)
    ]
    assert cv2.VideoCapture(str(tmp_path / 'out/in.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_class_maps_are_mmsegs(checkpoint, repository):
    """A segmenter that is built and run safely returns the same as with mmseg's API."""
    from mmengine.registry import DefaultScope
    from mmseg.apis import inference_model

    from mnv4_mm.images import read_image
    from mnv4_mm.tasks.predictors import Segmenter

    pixels = read_image(sorted((repository / 'data/mini/ade/images/validation').iterdir())[0])
    model = load_model(checkpoint, device='cpu')
    model.cfg.test_pipeline = model.cfg.test_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope('mmseg'):
        theirs = inference_model(model, pixels).pred_sem_seg.data
    ours = Segmenter(load_model(checkpoint, device='cpu'))(pixels).class_map
    np.testing.assert_array_equal(ours[None], theirs.numpy())


def test_masks_are_checked_before_training(tmp_path, drawn, call_tool):
    shutil.copytree(drawn, tmp_path / 'shapes')
    for name in ('000122', '000123'):
        mask = tmp_path / f'shapes/annotations/training/{name}.png'
        Image.fromarray(np.full((320, 320), 8, np.uint8)).save(mask)
    result = call_tool('train.py', NAME, '--data', tmp_path / 'shapes', '--work-dir', tmp_path / 'w')
    assert result.returncode == 2
    assert result.stderr.count('\n') == 1
    assert 'annotations/training/000122.png: 102400 pixels have the value 8' in result.stderr
    assert '1 to 7 are the classes, and 0 is unlabelled' in result.stderr
    assert not (tmp_path / 'w').exists()


def test_images_and_masks_of_any_layout_are_trained_on_and_measured(tmp_path):
    """Masks in colours, two kinds of images, no split: only --data is given."""
    root = tmp_path / 'mine'
    rng = np.random.default_rng(0)
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
    labels = {}
    for folder in ('images/day', 'masks/day'):
        (root / folder).mkdir(parents=True)
    for name in ('0.jpg', '0.png', '1.jpg', '2.jpg', '3.jpg', '4.jpg', '5.jpg', '6.jpg', '7.jpg', '8.jpg'):
        labels[name] = np.repeat(np.repeat(rng.integers(0, 3, (4, 6)), 12, 0), 12, 1)
        pixels = colours[labels[name]] // 2 + rng.integers(0, 99, (48, 72, 3), np.uint8)
        Image.fromarray(pixels).save(root / 'images/day' / name)
        Image.fromarray(colours[labels[name]]).save(root / 'masks/day' / f'{name}.png')
    (root / 'labelmap.txt').write_text('rest:0,0,0::\nred:255,0,0::\nblue:0,0,255::\n')
    options = {**IN_PROCESS, 'train_dataloader.batch_size': 2}
    train(NAME, data=str(root), work_dir=str(tmp_path / 'w'), iters=2, cfg_options=options)
    checkpoint = str(tmp_path / 'w/iter_2.pth')
    for path in ('masks/day', 'images/day'):
        for option in ('out', 'show_dir'):
            with pytest.raises(UserError, match='overwritten'):
                evaluate_files(None, checkpoint, work_dir=str(tmp_path), **{option: str(root / path)})
    calibration = _calibration_images(load_model(checkpoint, device='cpu'), None).files
    assert sorted(calibration) == sorted(prepare_masks(root).train.image_files())  # and no validation image
    metrics = evaluate_files(
        None, checkpoint, on='train', out=str(tmp_path / 'maps'), show_dir=str(tmp_path / 'shown'),
        work_dir=str(tmp_path / 't'),
    )  # fmt: skip
    split = prepare_masks(root).train
    names = [path.name for path in split.image_files()]
    assert len(names) == 8
    # The first two images differ in their suffix only.
    maps = {name: tmp_path / 'maps' / (f'{name}.png' if name[0] == '0' else f'{name[0]}.png') for name in names}
    assert sorted(path.name for path in (tmp_path / 'maps').iterdir()) == sorted(path.name for path in maps.values())
    assert sorted(path.name for path in (tmp_path / 'shown').iterdir()) == sorted(names)
    both, either = np.zeros(3), np.zeros(3)
    for name, path in maps.items():
        predicted = np.array(Image.open(path)).astype(int) - 1  # prepared masks begin with 1
        for label in range(3):
            expected, detected = labels[name] == label, predicted == label
            both[label] += (expected & detected).sum()
            either[label] += (expected | detected).sum()
    assert metrics['trained_on/mIoU'] == pytest.approx((both / either)[either > 0].mean(), abs=1e-9)


def test_missing_ade20k_is_an_error_with_advice(call_tool, tmp_path):
    result = call_tool(
        'train.py', 'mnv4_fpn_ade20k', '--work-dir', tmp_path / 'w',
        '--cfg-options', f'train_dataloader.dataset.data_root={tmp_path}/none',
    )  # fmt: skip
    assert result.returncode == 2
    assert 'looked for' in result.stderr
    assert 'mnv4 download ade20k' in result.stderr
    assert 'mnv4_lraspp_ade20k-mini' in result.stderr


@pytest.mark.long
@pytest.mark.skipif(not ADE_TINY.is_dir(), reason='no real ADE20K pairs here')
@pytest.mark.parametrize('name', HEADLINE)
def test_real_ade20k_with_the_full_size_config(name, tmp_path, run_tool):
    """Only the data root, the length and the weights (random, as the hub is out of reach) are changed."""
    roots = [f'{loader}.dataset.data_root={ADE_TINY}' for loader in LOADERS]
    run = run_tool(
        'train.py', name, '--work-dir', tmp_path / 'w', '--iters', 2,
        '--cfg-options', *roots, 'model.backbone.init_cfg=None',
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    metrics = json.loads((next((tmp_path / 'w').glob('*/vis_data')) / 'scalars.json').read_text().splitlines()[-1])
    assert 0 <= metrics['ade20k/mIoU'] <= 1
    test = run_tool('test.py', tmp_path / 'w/iter_2.pth', '--work-dir', tmp_path / 't')
    assert test.returncode == 0, test.stderr
    assert 'absent' in test.stdout
    assert '| wall ' in test.stdout
    assert json.loads((tmp_path / 't/metrics.json').read_text())['ade20k/mIoU'] == metrics['ade20k/mIoU']


def test_a_config_of_another_scope_is_named():
    with pytest.raises(UserError, match=r"must be one of mmdet, mmseg, got 'mmpose'"):
        task_of(Config(dict(default_scope='mmpose')))
