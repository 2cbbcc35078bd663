"""The task of semantic segmentation, with data sets of images and masks, evaluated by mIoU."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmseg.registry import DATASETS
from torch import nn

from mnv4_mm.data.formats.configured import HINTS, mask_split
from mnv4_mm.data.mask_split import MaskSplit, check_pairs
from mnv4_mm.data.prepare_masks import MaskLayout, is_unchanged, original_folders, prepare_masks
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_class_map_folder
from mnv4_mm.quiet import MISSING_OPTIONAL, without_lines
from mnv4_mm.runtime.draw import palette
from mnv4_mm.tasks.predictors import Segmenter
from mnv4_mm.tasks.task import Predictor, Task

with without_lines(MISSING_OPTIONAL):
    from mmseg.datasets import ADE20KDataset


class Segmentation(Task[MaskSplit, MaskLayout]):
    """Semantic segmentation, with data sets of images and masks, evaluated by mIoU."""

    name = 'segmentation'
    metric = 'mIoU'
    benchmark = 'ADE20K'
    hint = HINTS['mmseg']
    raw_output = 'logits'
    results = 'class_maps'
    ground_truth_steps = (dict(type='LoadMask'),)

    def find(
        self,
        root: str,
        *,
        classes: Sequence[str] | None = None,
        allow_dropped: bool = False,
        previous: Mapping[str, str] | None = None,
    ) -> MaskLayout:
        return prepare_masks(root, classes=classes, allow_dropped=allow_dropped, previous=previous)

    def split(self, dataset: Any) -> MaskSplit | None:
        if mask_split(dataset) is None:
            return None
        return mask_split(dataset, _setting(dataset, 'img_suffix', '.jpg'), _setting(dataset, 'seg_map_suffix', '.png'))

    def set_split(self, dataset: Any, split: MaskSplit) -> None:
        dataset.data_root = ''
        dataset.data_prefix = dict(img_path=str(split.images), seg_map_path=str(split.masks))
        dataset.img_suffix, dataset.seg_map_suffix = split.image_suffix, split.mask_suffix
        dataset.ann_file = str(split.names_file or '')

    def set_classes(self, dataset: Any, layout: MaskLayout) -> None:
        # mmseg's ADE20KDataset accepts only its own classes.
        dataset.type = 'BaseSegDataset'
        dataset.reduce_zero_label = True
        published = ADE20KDataset.METAINFO
        is_ade = tuple(layout.classes) == tuple(published['classes'])
        colours = published['palette'] if is_ade else palette(len(layout.classes))
        dataset.metainfo = dict(classes=layout.classes, palette=colours)

    def count_images(self, split: MaskSplit) -> int:
        if split.names_file:
            return len(split.names_file.read_text(encoding='utf-8').split('\n')) - 1
        return sum(1 for path in split.images.rglob('*') if path.name.endswith(split.image_suffix))

    def check_label_order(self, cfg: Config, dataset: Any) -> None:
        """Nothing to do: mmseg's labels follow the class names."""

    def set_class_order(self, cfg: Config, dataset: Any, old: Sequence[str], new: Sequence[str]) -> None:
        published = getattr(DATASETS.get(dataset.type), 'METAINFO', {}).get('classes')
        if published is None and dataset.type == 'BaseSegDataset':
            dataset.type = 'RelabelledSegDataset'
            dataset.file_classes = tuple(old)
        elif dataset.type != 'RelabelledSegDataset' and not set(new) <= set(published or ()):
            raise UserError(
                f'a {dataset.type} cannot be brought into another order of classes: the data have {", ".join(old)}, '
                f'the checkpoint {", ".join(new)}; use a BaseSegDataset or --data'
            )
        colours = dict(zip(old, (dataset.get('metainfo') or {}).get('palette') or palette(len(old)), strict=False))
        dataset.metainfo = dict(classes=tuple(new), palette=[colours[name] for name in new])

    def set_ground_truth(self, evaluator: Any, split: MaskSplit) -> None:
        """Nothing to do: the data loader provides the ground truth."""

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
        """Predict test images in sliding windows, and pad smaller ones to ``size``, the size of the training crops."""
        self.set_inference(cfg, 'slide')
        cfg.model.data_preprocessor.test_cfg = dict(size=size)  # pads images that are smaller than a window

    def check(self, split: MaskSplit, cfg: Config, dataset: Any) -> None:
        if is_unchanged(split):
            return
        reduced = bool(_setting(dataset, 'reduce_zero_label', False))
        check_pairs(split, cfg.model.decode_head.num_classes, reduced, self.hint)

    def data_paths(self, split: MaskSplit) -> list[Path]:
        return original_folders(split)

    def image_files(self, split: MaskSplit) -> list[Path]:
        return split.image_files()

    def check_out(self, out: str) -> None:
        check_class_map_folder(out)

    def set_outputs(self, cfg: Config, split: MaskSplit, per_class: bool, out: str | None) -> None:
        # mmseg's metric returns percent, and its hook cannot write to a folder of the user's choice.
        if cfg.test_evaluator.type == 'IoUMetric':
            cfg.test_evaluator = dict(type='ExactIoUMetric', prefix=cfg.test_evaluator.get('prefix'))
        cfg.test_evaluator.per_class = per_class
        cfg.default_hooks.visualization = dict(type='OverlayHook', image_dir=str(split.images))
        if out:
            if Path(out).resolve() in [folder.resolve() for folder in self.data_paths(split)]:
                raise UserError(f'--out {out} is a folder of the data, which would be overwritten')
            Path(out).mkdir(parents=True, exist_ok=True)
            cfg.test_evaluator.update(out_dir=out, image_dir=str(split.images))

    def finish_outputs(self, out: str) -> None:
        print(f'class maps: {out}')

    def check_ground_truth(self, infos: Iterable[Mapping[str, Any]]) -> None:
        """Nothing to do: ``check`` requires a mask for each image."""

    def evaluation_sample(self, info: Mapping[str, Any], size: tuple[int, int], prediction: Any) -> dict[str, Any]:
        predicted, ground_truth = (
            torch.from_numpy(class_map.astype(np.int64))[None]
            for class_map in (prediction.class_map, info['gt_seg_map'])
        )
        return dict(
            pred_sem_seg=dict(data=predicted),
            gt_sem_seg=dict(data=ground_truth),
            img_path=info['img_path'],
            reduce_zero_label=info.get('reduce_zero_label'),
        )

    def export_size(self, cfg: Config, size: tuple[int, int]) -> tuple[int, int]:
        # Test images vary in size; training crops have this size.
        height, width = cfg.model.data_preprocessor.get('size') or size
        return height, width

    def prepare_mmdeploy(self, cfg: Config) -> None:
        if cfg.model.test_cfg.get('mode') == 'slide':
            raise UserError(
                'mmdeploy exports inference on whole images only; this config predicts in windows '
                '(model.test_cfg.mode=slide)'
            )
        cfg.data_preprocessor = cfg.model.data_preprocessor  # where mmdeploy looks for the SDK's normalisation

    def predictor(self, model: nn.Module) -> Predictor:
        return Segmenter(model)


def _setting(dataset: Any, name: str, default: Any) -> Any:
    """Return a setting of a data set's config, or the default of its class (Cityscapes', LoveDA's, ...)."""
    if name in dataset:
        return dataset[name]
    parameters = inspect.signature(DATASETS.get(dataset.type)).parameters
    return parameters[name].default if name in parameters else default
