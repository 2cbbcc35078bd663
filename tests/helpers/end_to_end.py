"""Steps of a user's way from training to an exported file, shared by the short and the long tests."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnv4_mm.data.drawn import draw_dataset

Tool = Callable[..., Any]
# Steps of 4 images, side of a detector's input in pixels, learning rate.
LEARNED = {
    'mnv4_ssdlite_coco-mini': (40, 320, 2e-3),
    'mnv4_retinanet_coco-mini': (64, 160, 2e-3),
    'mnv4_rtmdet_coco-mini': (80, 160, 1e-3),
    'mnv4_lraspp_ade20k-mini': (64, 160, 5e-3),
    'mnv4_fpn_ade20k-mini': (64, 160, 4e-3),
    'mnv4_deeplabv3plus_ade20k-mini': (64, 160, 4e-3),
    'mnv4_segformer_ade20k-mini': (64, 160, 2e-3),
}
# Options of a config: no report on the training images; data loaders in this process.
IN_PROCESS: dict[str, Any] = {
    'report_on_training_images': False,
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
}


def resized(side: int) -> dict[str, Any]:
    """Options of a detector's mini config: resize all images to ``side`` x ``side`` pixels."""
    return {
        'train_dataloader.dataset.dataset.pipeline.2.scale': (side, side),
        'val_dataloader.dataset.pipeline.1.scale': (side, side),
        'test_dataloader.dataset.pipeline.1.scale': (side, side),
    }


def arguments(options: dict[str, Any]) -> list[str]:
    """Return options as arguments of a tool."""
    pairs = (f'{key}={value}'.replace(' ', '') for key, value in options.items())
    return ['--cfg-options', *pairs]


def draw_few(out: Path, backgrounds: Path, count: int, size: int) -> Path:
    """Draw a data set whose validation images are its training images: for nets that overfit them."""
    draw_dataset(out, backgrounds, train=count, val=1, size=size, seed=3)  # all six shapes in four images
    for source, target in (
        ('train', 'val'),
        ('images/training', 'images/validation'),
        ('annotations/training', 'annotations/validation'),
    ):
        shutil.rmtree(out / target)
        shutil.copytree(out / source, out / target)
    shutil.copy(out / 'annotations/instances_train.json', out / 'annotations/instances_val.json')
    return out


def last_checkpoint(work_dir: Path) -> str:
    return (work_dir / 'last_checkpoint').read_text().strip()


def check_run(work_dir: Path, metric: str) -> None:
    """Check the files that training leaves beside its last checkpoint."""
    assert len(list(work_dir.glob(f'best_shapes_{metric}_*.pth'))) == 1
    assert (work_dir / 'curves.png').stat().st_size > 10_000
    assert list(work_dir.glob('*/vis_data/events.out.tfevents.*'))


def check_detector(tool: Tool, checkpoint: str, data: Path, folder: Path) -> dict[str, float]:
    """Test a detector, run it on images, and compare the two; return the metrics that tools/test.py wrote."""
    out, shown = folder / 'detections.json', folder / 'shown'
    tested = tool('test.py', checkpoint, '--out', out, '--show-dir', shown, '--work-dir', folder / 'tested')
    assert tested.returncode == 0, tested.stderr
    assert '| disc ' in tested.stdout  # AP per class
    metrics = json.loads((folder / 'tested/metrics.json').read_text())
    # Boxes and category ids of the file that --out writes give the reported AP.
    ground_truth = data / 'annotations/instances_val.json'
    detections = json.loads(out.read_text())
    assert ap50(ground_truth, detections) == pytest.approx(metrics['shapes/bbox_mAP_50'], abs=5e-3)
    images = len(list((data / 'val').iterdir()))
    assert len(list(shown.rglob('*.jpg'))) == images  # in folders as the data has them

    inferred = tool('infer.py', data / 'val', checkpoint, '--out-dir', folder / 'inferred')
    assert inferred.returncode == 0, inferred.stderr
    assert len(list((folder / 'inferred').glob('*.jpg'))) == images
    # Both tools predict the same: pycocotools' AP of infer.py's JSON is the AP of test.py. Images are matched by name.
    content = json.loads((folder / 'inferred/predictions.json').read_text())
    ids = {image['file_name']: image['id'] for image in json.loads(ground_truth.read_text())['images']}
    names = {image['id']: image['file_name'] for image in content['images']}
    predictions = [dict(one, image_id=ids[names[one['image_id']]]) for one in content['annotations']]
    assert ap50(ground_truth, predictions) == pytest.approx(metrics['shapes/bbox_mAP_50'], abs=5e-3)
    return metrics


def check_segmenter(tool: Tool, checkpoint: str, data: Path, folder: Path) -> dict[str, float]:
    """Test a segmenter, run it on images, and compare the two; return the metrics that tools/test.py wrote."""
    tested = tool('test.py', checkpoint, '--show-dir', folder / 'shown', '--work-dir', folder / 'tested')
    assert tested.returncode == 0, tested.stderr
    assert '| disc ' in tested.stdout  # IoU per class
    images = data / 'images/validation'
    assert len(list((folder / 'shown').rglob('*.jpg'))) == len(list(images.iterdir()))
    metrics = json.loads((folder / 'tested/metrics.json').read_text())

    inferred = tool('infer.py', images, checkpoint, '--out-dir', folder / 'inferred')
    assert inferred.returncode == 0, inferred.stderr
    # Both tools predict the same: numpy's mIoU of infer.py's class maps is the mIoU of test.py.
    class_maps = folder / 'inferred/class_maps'
    assert miou(data / 'annotations/validation', class_maps) == pytest.approx(metrics['shapes/mIoU'], abs=1e-9)
    return metrics


def check_exported(tool: Tool, checkpoint: str, metric: float) -> None:
    """Export to two runtimes; tools/compare.py passes both and measures the checkpoint as tools/test.py does."""
    exported = tool('export.py', checkpoint, '--to', 'onnx', 'openvino')
    assert exported.returncode == 0, exported.stderr
    table = Path(checkpoint).parent / 'table.json'
    compared = tool('compare.py', checkpoint, '--rounds', 0, '--out', table)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    rows = json.loads(table.read_text())['rows']
    assert rows[0]['metric'] == pytest.approx(metric, abs=1e-6)
    assert [row['verdict'] for row in rows if row['verdict']] == ['ok', 'ok']


def ap50(ground_truth: Path, detections: list[dict[str, Any]]) -> float:
    """Return the AP at IoU 0.5 of detections in COCO's format by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO(ground_truth)
    evaluation = COCOeval(coco, coco.loadRes(detections), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[1]


def miou(masks: Path, class_maps: Path) -> float:
    """Return the mean IoU by numpy over the classes in ground truth or predictions; 0 is unlabelled."""
    intersection, union = np.zeros(256), np.zeros(256)
    for path in masks.iterdir():
        ground_truth, predicted = (np.array(Image.open(folder / path.name)) for folder in (masks, class_maps))
        for value in range(1, 256):
            t, p = ground_truth == value, (predicted == value) & (ground_truth > 0)
            intersection[value] += (t & p).sum()
            union[value] += (t | p).sum()
    return (intersection[union > 0] / union[union > 0]).mean()
