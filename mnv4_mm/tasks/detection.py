"""The task of object detection, with data sets in COCO's format, evaluated by COCO AP."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from mnv4_mm.data.coco_files import FULL_CHECK_BYTES, CocoLayout, Split, check_split, listed_images, require_split
from mnv4_mm.data.formats.configured import HINTS, coco_split
from mnv4_mm.data.prepare import is_prepared, prepare_detection
from mnv4_mm.data.trained import count_trained
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_data, check_detections_file
from mnv4_mm.runtime.draw import palette
from mnv4_mm.tasks.box_sizes import small_box_lines
from mnv4_mm.tasks.predictors import Detector
from mnv4_mm.tasks.task import Predictor, Task

# Types of data sets whose classes, and so labels, can be reordered.
COCO_TYPES = ('CocoDataset', 'mmdet.CocoDataset', 'CachedCocoDataset', 'NamedCocoDataset')


class Detection(Task[Split, CocoLayout]):
    """Object detection, with data sets in COCO's format, evaluated by COCO AP."""

    name = 'detection'
    metric = 'bbox_mAP'
    benchmark = 'COCO'
    hint = HINTS['mmdet']
    raw_output = 'raw'
    results = 'detections.json'
    ground_truth_steps = ()

    def find(
        self,
        root: str,
        *,
        classes: Sequence[str] | None = None,
        allow_dropped: bool = False,
        previous: Mapping[str, str] | None = None,
    ) -> CocoLayout:
        return prepare_detection(root, classes=classes, allow_dropped=allow_dropped, previous=previous)

    def split(self, dataset: Any) -> Split | None:
        return coco_split(dataset)

    def set_split(self, dataset: Any, split: Split) -> None:
        dataset.data_root = ''
        dataset.ann_file = str(split.annotations)
        dataset.data_prefix = dict(img=str(split.images))

    def set_classes(self, dataset: Any, layout: CocoLayout) -> None:
        dataset.metainfo = dict(classes=layout.classes, palette=palette(len(layout.classes)))

    def count_images(self, split: Split) -> int:
        return len(json.loads(split.annotations.read_bytes())['images'])

    def check_label_order(self, cfg: Config, dataset: Any) -> None:
        split = coco_split(dataset)
        classes = (dataset.get('metainfo') or {}).get('classes')
        if split is None or not classes or dataset.get('type') not in COCO_TYPES or not split.annotations.is_file():
            return
        # Prepared files have been checked; another check would read the header of each image.
        prepared = is_prepared(split.annotations)
        categories = json.loads(split.annotations.read_bytes())['categories'] if prepared else check_split(split)
        names = [category['name'] for category in categories]
        missing = [name for name in classes if name not in names]
        if missing:
            raise UserError(
                f'{split.annotations} has no category {", ".join(missing)}, which the config names as a class; it has '
                f'{", ".join(names)}: the labels of the other classes would be wrong'
            )
        if [name for name in names if name in classes] != list(classes):
            self.set_class_order(cfg, dataset, classes, classes)

    def set_class_order(self, cfg: Config, dataset: Any, old: Sequence[str], new: Sequence[str]) -> None:
        if dataset.get('type') not in COCO_TYPES:
            raise UserError(
                f'the classes of the data ({", ".join(old)}) and of the checkpoint ({", ".join(new)}) are in different '
                f'orders, and a {dataset.get("type")} cannot be reordered: use a CocoDataset or --data'
            )
        dataset.type = 'NamedCocoDataset'
        dataset.metainfo = dict(classes=tuple(new), palette=palette(len(new)))
        for name in ('val_evaluator', 'test_evaluator'):
            if cfg.get(name):
                cfg[name].type = 'FastCocoMetric'
                cfg[name].named_labels = True

    def set_ground_truth(self, evaluator: Any, split: Split) -> None:
        if 'ann_file' not in evaluator:
            raise UserError(
                'an evaluator of this config is not one FastCocoMetric or CocoMetric with ann_file, as these tools need'
            )
        evaluator.ann_file = str(split.annotations)

    def set_inference(self, cfg: Config, mode: str) -> None:
        raise UserError('--inference is for segmentation; a detector always takes the whole image')

    def set_one_size(self, cfg: Config, size: tuple[int, int]) -> None:
        """Nothing to do: the pipelines resize every image to the config's one size."""

    def check(self, split: Split, cfg: Config, dataset: Any) -> None:
        if is_prepared(split.annotations):
            check_data(split, 'prepared files are in the cache folder: name the data set by --data')
        else:
            require_split(split, self.hint)

    def data_paths(self, split: Split) -> list[Path]:
        # The content of large annotation files is not read here.
        files = self.image_files(split) if is_prepared(split.annotations) else super().image_files(split)
        return [*split, *dict.fromkeys(path.parent for path in files)]

    def image_files(self, split: Split) -> list[Path]:
        if not split.annotations.is_file():
            return []
        # One folder may hold all splits: the images of this one are those that the annotations name.
        files = list(dict.fromkeys(split.images / name for name in listed_images(split.annotations)))
        return files if is_prepared(split.annotations) else [file for file in files if file.is_file()]

    def training_lines(self, split: Split, cfg: Config, dataset: Any) -> list[str]:
        if split.annotations.stat().st_size > FULL_CHECK_BYTES and not is_prepared(split.annotations):
            return []
        content = json.loads(split.annotations.read_bytes())
        trained = count_trained(content, dataset.get('filter_cfg'), (dataset.get('metainfo') or {}).get('classes'))
        trained.require_some(split.annotations)
        return [str(trained), *small_box_lines(content, cfg)]

    def check_out(self, out: str) -> None:
        check_detections_file(out)

    def set_outputs(self, cfg: Config, split: Split, per_class: bool, out: str | None) -> None:
        cfg.test_evaluator.classwise = per_class
        cfg.default_hooks.visualization = dict(type='BoxesHook', image_dir=str(split.images))
        if out:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            cfg.test_evaluator.outfile_prefix = str(Path(out).with_suffix(''))

    def finish_outputs(self, out: str) -> None:
        Path(out).with_suffix('.bbox.json').replace(out)  # mmdet's CocoMetric adds the suffix

    def check_ground_truth(self, infos: Iterable[Mapping[str, Any]]) -> None:
        if not any(info['instances'] for info in infos):
            raise UserError(f'the test set has no boxes to compute {self.metric} with')

    def evaluation_sample(self, info: Mapping[str, Any], size: tuple[int, int], prediction: Any) -> dict[str, Any]:
        instances = dict(
            bboxes=torch.from_numpy(prediction.boxes),
            scores=torch.from_numpy(prediction.scores),
            labels=torch.from_numpy(prediction.labels),
        )
        return dict(img_id=info['img_id'], ori_shape=size, pred_instances=instances)

    def export_size(self, cfg: Config, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def prepare_mmdeploy(self, cfg: Config) -> None:
        """Nothing to do."""

    def predictor(self, model: nn.Module) -> Predictor:
        return Detector(model)
