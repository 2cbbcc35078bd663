"""Summary of the data of a run: its splits, and what the check of a user's data set found."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.config.data import dataset_split, innermost_dataset
from mnv4_mm.data.findings import KINDS, Finding
from mnv4_mm.report.class_maps import count_pixels
from mnv4_mm.report.content import DataSummary, FindingGroup, SplitSummary
from mnv4_mm.tasks import task_of

SMALL, MEDIUM = 32**2, 96**2  # COCO's limits of the area, in square pixels of the image
MAX_MASKS = 2000  # training masks that are counted: more take minutes
SPLITS = {'training': 'train_dataloader', 'validation': 'test_dataloader'}


def summarise(cfg: Config, root: str | Path, checked: Any = None) -> tuple[DataSummary, dict[str, list[int] | None]]:
    """Summarise the data of a config.

    Args:
        cfg: The config.
        root: Folder of the data, for the reader.
        checked: Result of the check of a user's data set, with ``format``, ``notes`` and ``findings``; None if there
            was none.

    Returns:
        The summary, and the boxes or pixels of each class by split; None where they were not counted.
    """
    classes = innermost_dataset(cfg.test_dataloader.dataset).get('metainfo', {}).get('classes')
    splits, counts = [], {}
    for name, loader in SPLITS.items():
        if cfg.get(loader) is None:
            continue
        split, counts[name] = (
            _boxes(name, dataset_split(cfg, loader).annotations, classes)
            if task_of(cfg).name == 'detection'
            else _masks(name, cfg, loader)
        )
        splits.append(split)
    summary = DataSummary(
        folder=str(root),
        format=str(getattr(checked, 'format', '') or ''),
        splits=splits,
        notes=[str(note) for note in getattr(checked, 'notes', ())],
        findings=None if checked is None else group_findings(getattr(checked, 'findings', ())),
    )
    return summary, counts


def group_findings(findings: Iterable[Finding]) -> list[FindingGroup]:
    """Group findings by kind: fatal ones first, then dropped and harmless ones, the most frequent kind first."""
    rules = ['fatal', 'dropped', 'harmless']
    groups = []
    for kind, items in itertools.groupby(sorted(findings, key=lambda item: item.kind), key=lambda item: item.kind):
        first, *others = items
        groups.append(FindingGroup(first.rule.value, kind, 1 + len(others), KINDS[kind].remedy, str(first)))
    return sorted(groups, key=lambda group: (rules.index(group.rule), -group.count))


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
