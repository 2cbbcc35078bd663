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
from mmseg.registry import DATASETS
from torch import nn

from mnv4_mm.data.formats.ade import AdeLayout, MaskSplit, check_pairs, find_ade
from mnv4_mm.data.formats.configured import HINTS, mask_split
from mnv4_mm.engine.overlay import labels, overlay, with_legend, write_class_map
from mnv4_mm.errors import UserError
from mnv4_mm.images import IMAGE_SUFFIXES
from mnv4_mm.paths import check_class_map_folder
from mnv4_mm.quiet import MISSING_OPTIONAL, without_lines
from mnv4_mm.tasks.task import Frame, Results, Task, palette

with without_lines(MISSING_OPTIONAL):
    from mmseg.datasets import ADE20KDataset


class Segmentation(Task[MaskSplit, AdeLayout]):
    """Semantic segmentation: data sets in ADE20K's layout, mIoU."""

    name = 'segmentation'
    metric = 'mIoU'
    benchmark = 'ADE20K'
    hint = HINTS['mmseg']
    raw_output = 'logits'

    def find(self, root: str) -> AdeLayout:
        return find_ade(root)

    def split(self, dataset: Any) -> MaskSplit | None:
        if mask_split(dataset) is None:
            return None
        return mask_split(dataset, _setting(dataset, 'img_suffix', '.jpg'), _setting(dataset, 'seg_map_suffix', '.png'))

    def set_split(self, dataset: Any, split: MaskSplit) -> None:
        dataset.data_root = ''
        dataset.data_prefix = dict(img_path=str(split.pictures), seg_map_path=str(split.masks))
        dataset.img_suffix, dataset.seg_map_suffix = split.suffix, split.mask_suffix
        dataset.ann_file = str(split.listed or '')

    def set_classes(self, dataset: Any, layout: AdeLayout) -> None:
        # mmseg's ADE20KDataset takes no classes but its own.
        dataset.type = 'BaseSegDataset'
        dataset.reduce_zero_label = True
        published = ADE20KDataset.METAINFO
        is_ade = tuple(layout.classes) == tuple(published['classes'])
        colours = published['palette'] if is_ade else palette(len(layout.classes))
        dataset.metainfo = dict(classes=layout.classes, palette=colours)

    def set_ground_truth(self, evaluator: Any, split: MaskSplit) -> None:
        """Nothing to do: the data loader provides it."""

    def set_inference(self, cfg: Config, mode: str) -> None:
        if mode == 'whole':
            cfg.model.test_cfg = dict(mode='whole')
        elif cfg.model.test_cfg.get('mode') != 'slide':
            size = cfg.model.data_preprocessor.get('size')  # training crops are padded to it: (height, width)
            if not size:
                raise UserError(
                    '--inference slide needs model.data_preprocessor.size, (height, width) of a training crop'
                )
            cfg.model.test_cfg = dict(mode='slide', crop_size=size, stride=tuple(length * 2 // 3 for length in size))

    def set_one_size(self, cfg: Config, size: tuple[int, int]) -> None:
        """Training crops have the one size; test images do not, and are predicted in windows."""
        self.set_inference(cfg, 'slide')
        cfg.model.data_preprocessor.test_cfg = dict(size=size)  # no window is smaller

    def check(self, split: MaskSplit, cfg: Config, dataset: Any) -> None:
        reduced = bool(_setting(dataset, 'reduce_zero_label', False))
        check_pairs(split, cfg.model.decode_head.num_classes, reduced, self.hint)

    def check_out(self, out: str) -> None:
        check_class_map_folder(out)

    def set_outputs(self, cfg: Config, split: MaskSplit, per_class: bool, out: str | None) -> None:
        # mmseg's metric returns percent, and its hook cannot write to a folder of the user's choice.
        if cfg.test_evaluator.type == 'IoUMetric':
            cfg.test_evaluator = dict(type='ExactIoUMetric', prefix=cfg.test_evaluator.get('prefix'))
        cfg.test_evaluator.per_class = per_class
        cfg.default_hooks.visualization = dict(type='OverlayHook', pictures=str(split.pictures))
        if out:
            if Path(out).resolve() in (split.masks.resolve(), split.pictures.resolve()):
                raise UserError(f'--out {out} is a folder of the data, which would be overwritten')
            Path(out).mkdir(parents=True, exist_ok=True)
            cfg.test_evaluator.update(out_dir=out, pictures=str(split.pictures))

    def finish_outputs(self, out: str) -> None:
        print(f'class maps: {out}')

    @property
    def ground_truth_pipeline(self) -> list[dict[str, Any]]:
        return [dict(type='LoadAnnotations')]

    def check_ground_truth(self, dataset: Any) -> None:
        """Every image has a mask, see ``check``; masks without a labelled pixel make the metric NaN."""

    def evaluation_sample(self, info: dict[str, Any], size: tuple[int, int], prediction: Any) -> dict[str, Any]:
        predicted, truth = (
            torch.from_numpy(labels.astype(np.int64))[None] for labels in (prediction.labels, info['gt_seg_map'])
        )
        return dict(
            pred_sem_seg=dict(data=predicted),
            gt_sem_seg=dict(data=truth),
            img_path=info['img_path'],
            reduce_zero_label=info.get('reduce_zero_label'),
        )

    def results(self, model: nn.Module, out_dir: Path, score_thr: float) -> Results:
        return ClassMaps(model, out_dir)

    def export_size(self, cfg: Config, size: tuple[int, int]) -> tuple[int, int]:
        # Test images have all sizes; training crops had this one.
        height, width = cfg.model.data_preprocessor.get('size') or size
        return height, width

    def prepare_mmdeploy(self, cfg: Config) -> None:
        if cfg.model.test_cfg.get('mode') == 'slide':
            raise UserError(
                'mmdeploy exports inference on whole images only; this config predicts in windows '
                '(model.test_cfg.mode=slide)'
            )
        cfg.data_preprocessor = cfg.model.data_preprocessor  # where mmdeploy looks for the SDK's normalisation


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


def _setting(dataset: Any, name: str, default: Any) -> Any:
    """Return a setting of a data set's config, or the default of its class (Cityscapes', LoveDA's, ...)."""
    if name in dataset:
        return dataset[name]
    parameters = inspect.signature(DATASETS.get(dataset.type)).parameters
    return parameters[name].default if name in parameters else default


def _pipeline(cfg: Config) -> Compose:
    """The test pipeline of a config, for pictures in memory and without truth."""
    steps = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
    steps = [step for step in steps if step['type'] != 'LoadAnnotations']
    steps[0]['type'] = 'LoadImageFromNDArray'
    with DefaultScope.overwrite_default_scope('mmseg'):
        return Compose(steps)
