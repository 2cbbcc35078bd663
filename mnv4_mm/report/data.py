"""Summary of the data of a run: its splits, and what the check of a user's data set found."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.config.data import dataset_split, find_own_data, innermost_dataset
from mnv4_mm.data.checked import CheckedData
from mnv4_mm.data.findings import KINDS
from mnv4_mm.report.class_maps import count_pixels
from mnv4_mm.report.content import DataSummary, FindingGroup, SplitSummary
from mnv4_mm.tasks import task_of

SMALL, MEDIUM = 32**2, 96**2  # COCO's limits of the area, in square pixels of the image
MAX_MASKS = 2000  # masks of a split up to which pixels are counted; more would take minutes
SPLITS = {'training': 'train_dataloader', 'validation': 'test_dataloader'}


def summarise(cfg: Config) -> tuple[DataSummary, dict[str, list[int] | None]]:
    """Summarise the data of a config.

    Args:
        cfg: The config. The data set that it names by ``own_data`` has been checked, and is not checked again.

    Returns:
        The summary, and a dict from the name of a split to the number of boxes or pixels of each class, in the order of
        labels. The value is None if they were not counted, because the split has more than ``MAX_MASKS`` masks.
    """
    task, own = task_of(cfg), cfg.get('own_data')
    classes = innermost_dataset(cfg.test_dataloader.dataset).get('metainfo', {}).get('classes')
    splits, counts = [], {}
    for name, loader in SPLITS.items():
        if cfg.get(loader) is None:
            continue
        split, counts[name] = (
            _boxes(name, dataset_split(cfg, loader).annotations, classes)
            if task.name == 'detection'
            else _masks(name, cfg, loader)
        )
        splits.append(split)
    summary = DataSummary(str(dataset_split(cfg, 'test_dataloader').images), '', splits)
    checked = find_own_data(cfg, classes) if own else None
    if checked:
        summary.folder, summary.format = str(checked.root), checked.format
        dataset = innermost_dataset(cfg.train_dataloader.dataset)
        summary.notes = [
            *checked.notes, *task.training_lines(dataset_split(cfg, 'train_dataloader'), cfg, dataset)
        ]  # fmt: skip
        summary.left_out = {name: (count.dropped, count.found) for name, count in checked.counts.items()}
        summary.findings = group_findings(checked)
    return summary, counts


def group_findings(checked: CheckedData) -> list[FindingGroup]:
    """Describe the findings of a check by kind: fatal ones first, then dropped and harmless ones."""
    groups = []
    for kind, findings in checked.grouped().items():
        first = findings[0]
        file = first.file.relative_to(checked.root) if first.file.is_relative_to(checked.root) else first.file
        text = f'{", ".join(filter(None, [str(file), first.entry]))}: {first.problem}'
        groups.append(FindingGroup(KINDS[kind].rule.value, kind, len(findings), KINDS[kind].remedy, text))
    return groups


def _boxes(name: str, annotations: Path, classes: Sequence[str] | None) -> tuple[SplitSummary, list[int] | None]:
    content = json.loads(annotations.read_bytes())
    names = {category['id']: category['name'] for category in content['categories']}
    boxes = [box for box in content['annotations'] if not box.get('iscrowd')]
    per_class = Counter(names.get(box['category_id']) for box in boxes)
    areas = [box['bbox'][2] * box['bbox'][3] for box in boxes]
    sizes = {
        'small': sum(area < SMALL for area in areas),
        'medium': sum(SMALL <= area < MEDIUM for area in areas),
        'large': sum(area >= MEDIUM for area in areas),
    }
    empty = len({image['id'] for image in content['images']} - {box['image_id'] for box in boxes})
    split = SplitSummary(name, len(content['images']), len(boxes), empty, sizes)
    return split, [per_class[label] for label in classes or names.values()]


def _masks(name: str, cfg: Config, loader: str) -> tuple[SplitSummary, list[int] | None]:
    dataset = innermost_dataset(cfg[loader].dataset).copy()
    dataset['pipeline'] = list(task_of(cfg).ground_truth_steps)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = DATASETS.build(dataset)
        counts = None
        if len(built) <= MAX_MASKS:
            counts = count_pixels((built[i]['gt_seg_map'] for i in range(len(built))), built.metainfo['classes'])
    return SplitSummary(name, len(built)), counts
