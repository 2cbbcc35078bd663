"""Segmentation: data sets in ADE20K's layout, mIoU, class maps."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATASETS
from torch import nn

from mnv4_mm.data.formats.ade import AdeLayout, MaskSplit, check_pairs, find_ade
from mnv4_mm.engine.overlay import labels, overlay, with_legend, write_class_map
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES
from mnv4_mm.tasks.task import Frame, Results, Task, palette


class Segmentation(Task[MaskSplit, AdeLayout]):
    metric = 'mIoU'
    benchmark = 'ADE20K'
    hint = (
        'fetch it with `python tools/download_dataset.py ade20k`, or try `python tools/train.py '
        'configs/mnv4_lraspp_ade20k-mini.py`, whose data is in the repository'
    )

    def find(self, root: str) -> AdeLayout:
        return find_ade(root)

    def split(self, dataset: Any) -> MaskSplit | None:
        prefix = dataset.get('data_prefix') or {}
        if not {'img_path', 'seg_map_path'} <= prefix.keys():
            return None
        # As mmseg's BaseSegDataset joins them.
        root = Path(dataset.get('data_root') or '')
        return MaskSplit(
            root / prefix['img_path'],
            root / prefix['seg_map_path'],
            _setting(dataset, 'img_suffix', '.jpg'),
            _setting(dataset, 'seg_map_suffix', '.png'),
            root / dataset.ann_file if dataset.get('ann_file') else None,
        )

    def set_split(self, dataset: Any, split: MaskSplit) -> None:
        dataset.data_root = ''
        dataset.data_prefix = dict(img_path=str(split.images), seg_map_path=str(split.masks))
        dataset.img_suffix, dataset.seg_map_suffix = split.image_suffix, split.mask_suffix
        dataset.ann_file = str(split.names_file or '')

    def set_classes(self, dataset: Any, layout: AdeLayout) -> None:
        # mmseg's ADE20KDataset takes no classes but its own.
        dataset.type = 'BaseSegDataset'
        dataset.reduce_zero_label = True
        published = ADE20KDataset.METAINFO
        is_ade = tuple(layout.classes) == tuple(published['classes'])
        colours = published['palette'] if is_ade else palette(len(layout.classes))
        dataset.metainfo = dict(classes=layout.classes, palette=colours)

    def set_truth(self, evaluator: Any, split: MaskSplit) -> None:
        """It comes with the pictures."""

    def check(self, split: MaskSplit, cfg: Config, dataset: Any) -> None:
        reduced = bool(_setting(dataset, 'reduce_zero_label', False))
        check_pairs(split, cfg.model.decode_head.num_classes, reduced, self.hint)

    def check_out(self, out: str) -> None:
        if Path(out).suffix or Path(out).is_file():
            raise UserError(f'--out {out}: class maps are written as PNG files, name a folder')

    def set_outputs(self, cfg: Config, split: MaskSplit, per_class: bool, out: str | None) -> None:
        # A config of mmseg's own names its metric, in percent, and its hook, which knows no folder.
        if cfg.test_evaluator.type == 'IoUMetric':
            cfg.test_evaluator = dict(type='ExactIoUMetric', prefix=cfg.test_evaluator.get('prefix'))
        cfg.test_evaluator.per_class = per_class
        cfg.default_hooks.visualization = dict(type='OverlayHook', pictures=str(split.images))
        if out:
            if Path(out).resolve() in (split.masks.resolve(), split.images.resolve()):
                raise UserError(f'--out {out} is where the data is: it would be written over')
            Path(out).mkdir(parents=True, exist_ok=True)
            cfg.test_evaluator.update(out_dir=out, image_dir=str(split.images))

    def finish_outputs(self, out: str) -> None:
        print(f'class maps: {out}')

    def results(self, model: nn.Module, out_dir: Path, score_thr: float) -> Results:
        return ClassMaps(model, out_dir)


class ClassMaps(Results):
    """Writes class maps as indexed PNG files into ``class_maps/``, and ``predictions.json``.

    A map's values are those of the masks the model was trained with. The JSON has the name of each value, and of each
    picture its map and the share of its pixels that each class has.
    """

    def __init__(self, model: Any, out_dir: Path) -> None:
        self.model = model
        self.out_dir = out_dir
        meta = model.dataset_meta
        self.names, self.palette = list(meta['classes']), list(meta['palette'])
        self.first = int(bool(meta.get('reduce_zero_label')))
        self.pipeline = _pipeline(model.cfg)
        self.images: list[dict] = []
        self.taken: set[Path] = set()

    def add(self, frame: Frame) -> np.ndarray:
        data = pseudo_collate([self.pipeline(dict(img=frame.pixels))])
        with torch.no_grad():
            found = self.model.test_step(data)[0].pred_sem_seg.data
        name = self._name(Path(frame.name))
        write_class_map(self.out_dir / name, found.squeeze(0), self.palette, self.first)
        values = labels(found)
        counts = np.bincount(values.ravel(), minlength=len(self.names))
        share = {self.names[i]: counts[i] / values.size for i in np.argsort(-counts, kind='stable') if counts[i]}
        self.images.append(dict(file_name=frame.name, class_map=name.as_posix(), share=share))
        return with_legend(overlay(frame.pixels, values, self.palette), [values], self.names, self.palette)

    def _name(self, picture: Path) -> Path:
        """``class_maps/a.png`` for ``a.jpg``; where that is taken, and for frames of a video, the whole name."""
        name = Path('class_maps') / picture.with_suffix('.png').name
        if picture.suffix.lower() not in IMAGE_SUFFIXES or name in self.taken:
            name = Path('class_maps') / f'{picture.name}.png'
        self.taken.add(name)
        return name

    def save(self) -> Path:
        path = self.out_dir / 'predictions.json'
        values = {name: value for value, name in enumerate(self.names, self.first)}
        path.write_text(json.dumps(dict(values=values, images=self.images)))
        return path


def _setting(dataset: Any, name: str, otherwise: Any) -> Any:
    """A setting of a data set's config, or what its class (Cityscapes', LoveDA's, ...) takes where it is left out."""
    if name in dataset:
        return dataset[name]
    parameters = inspect.signature(DATASETS.get(dataset.type)).parameters
    return parameters[name].default if name in parameters else otherwise


def _pipeline(cfg: Config) -> Compose:
    """The test pipeline of a config, for pictures in memory and without truth."""
    steps = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
    steps = [step for step in steps if step['type'] != 'LoadAnnotations']
    steps[0]['type'] = 'LoadImageFromNDArray'
    with DefaultScope.overwrite_default_scope('mmseg'):
        return Compose(steps)
