"""Detection: data sets in COCO's layout, COCO AP, boxes."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmdet.apis import inference_detector
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mnv4_mm.data.formats.coco import CocoLayout, Split, find_coco, require_split
from mnv4_mm.errors import UserError
from mnv4_mm.tasks.task import Frame, Results, Task, palette


class Detection(Task[Split, CocoLayout]):
    metric = 'bbox_mAP'
    benchmark = 'COCO'
    hint = (
        'fetch it with `python tools/download_dataset.py coco2017`, or try `python tools/train.py '
        'configs/mnv4_ssdlite_coco-mini.py`, whose data is in the repository'
    )

    def find(self, root: str) -> CocoLayout:
        return find_coco(root)

    def split(self, dataset: Any) -> Split | None:
        if not {'ann_file', 'data_prefix'} <= dataset.keys() or 'img' not in dataset.data_prefix:
            return None
        # As mmengine's BaseDataset joins them.
        root = Path(dataset.get('data_root') or '')
        return Split(root / dataset.ann_file, root / dataset.data_prefix.img)

    def set_split(self, dataset: Any, split: Split) -> None:
        dataset.data_root = ''
        dataset.ann_file = str(split.annotations)
        dataset.data_prefix = dict(img=str(split.images))

    def set_classes(self, dataset: Any, layout: CocoLayout) -> None:
        dataset.metainfo = dict(classes=layout.classes, palette=palette(len(layout.classes)))

    def set_truth(self, evaluator: Any, split: Split) -> None:
        if 'ann_file' not in evaluator:
            raise UserError(
                'an evaluator of this config is not one FastCocoMetric or CocoMetric with ann_file, as these tools need'
            )
        evaluator.ann_file = str(split.annotations)

    def check(self, split: Split, cfg: Config, dataset: Any) -> None:
        require_split(split, self.hint)

    def check_out(self, out: str) -> None:
        if Path(out).suffix != '.json':
            raise UserError(f'--out {out}: detections are written in COCO format, name a .json file')

    def set_outputs(self, cfg: Config, split: Split, per_class: bool, out: str | None) -> None:
        cfg.test_evaluator.classwise = per_class
        if out:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            cfg.test_evaluator.outfile_prefix = str(Path(out).with_suffix(''))

    def finish_outputs(self, out: str) -> None:
        Path(out).with_suffix('.bbox.json').replace(out)  # mmdet's CocoMetric adds the ending by itself

    def results(self, model: nn.Module, out_dir: Path, score_thr: float) -> Results:
        return Detections(model, out_dir, score_thr)


class Detections(Results):
    """Writes ``predictions.json``: a COCO data set whose annotations have a ``score``.

    Boxes are [x, y, width, height] in pixels of the original picture; all detections are there, not only those drawn.
    """

    def __init__(self, model: Any, out_dir: Path, score_thr: float) -> None:
        self.model = model
        self.path = out_dir / 'predictions.json'
        self.score_thr = score_thr
        names = model.dataset_meta['classes']
        # In the order of labels; the data's own where train.py noted them.
        self.category_ids = model.checkpoint_meta.get('category_ids') or list(range(1, len(names) + 1))
        self.content: dict[str, list] = dict(
            images=[],
            annotations=[],
            categories=[dict(id=i, name=name) for i, name in zip(self.category_ids, names, strict=True)],
        )
        self.painter = DetLocalVisualizer()
        self.painter.dataset_meta = model.dataset_meta

    def add(self, frame: Frame) -> np.ndarray:
        with DefaultScope.overwrite_default_scope('mmdet'):
            sample = inference_detector(self.model, frame.pixels)
        height, width = frame.pixels.shape[:2]
        image_id = len(self.content['images']) + 1
        self.content['images'].append(dict(id=image_id, file_name=frame.name, width=width, height=height))
        found = sample.pred_instances.cpu().numpy()
        for (x1, y1, x2, y2), score, label in zip(
            found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            self.content['annotations'].append(
                dict(
                    id=len(self.content['annotations']) + 1,
                    image_id=image_id,
                    category_id=self.category_ids[label],
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=0,
                    score=score,
                )
            )
        picture = mmcv.bgr2rgb(frame.pixels)
        with quiet_painter():
            self.painter.add_datasample(frame.name, picture, sample, draw_gt=False, pred_score_thr=self.score_thr)
        return mmcv.rgb2bgr(self.painter.get_image())

    def save(self) -> Path:
        self.path.write_text(json.dumps(self.content))
        return self.path


@contextmanager
def quiet_painter() -> Iterator[None]:
    """Silences mmengine's painter about boxes and labels that reach over the edge, as COCO's ground truth does."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message=r'Warning: The \w+ is out of bounds')
        yield
