"""Detection: data sets in COCO's layout, COCO AP, boxes."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from mnv4_mm.data.formats.coco import CocoLayout, Split, find_coco, require_split
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.draw import palette
from mnv4_mm.tasks.predictors import Detector
from mnv4_mm.tasks.task import Predictor, Task


class Detection(Task[Split, CocoLayout]):
    name = 'detection'
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

    def predictor(self, model: nn.Module) -> Predictor:
        return Detector(model)
