"""Segmentation: data sets in ADE20K's layout, mIoU, class maps."""

import inspect
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATASETS
from torch import nn

from mnv4_mm.data.formats.ade import AdeLayout, MaskSplit, check_pairs, find_ade
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.draw import palette
from mnv4_mm.tasks.predictors import Segmenter
from mnv4_mm.tasks.task import Predictor, Task


class Segmentation(Task[MaskSplit, AdeLayout]):
    name = 'segmentation'
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

    def predictor(self, model: nn.Module) -> Predictor:
        return Segmenter(model)


def _setting(dataset: Any, name: str, otherwise: Any) -> Any:
    """A setting of a data set's config, or what its class (Cityscapes', LoveDA's, ...) takes where it is left out."""
    if name in dataset:
        return dataset[name]
    parameters = inspect.signature(DATASETS.get(dataset.type)).parameters
    return parameters[name].default if name in parameters else otherwise
