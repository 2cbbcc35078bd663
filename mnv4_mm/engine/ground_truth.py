"""Ground truth in COCO's format for faster-coco-eval."""

import json
from pathlib import Path

from faster_coco_eval import COCO


def read_ground_truth(path: str | Path) -> COCO:
    """Read a COCO annotation file.

    If the id of an annotation is missing, repeated or not a positive integer, all annotations are numbered 1, 2, ...
    The evaluation marks a found box by its id, and 0 stands for a box that is not found. An ``iscrowd`` of null is
    read as 0, as by mmdet's data set.
    """
    content = json.loads(Path(path).read_bytes())
    annotations = content.get('annotations', [])  # test sets have none
    for annotation in annotations:
        if annotation.get('iscrowd', 0) is None:
            annotation['iscrowd'] = 0
    ids = [annotation.get('id') for annotation in annotations]
    if not all(type(number) is int and number > 0 for number in ids) or len(set(ids)) < len(ids):
        content['annotations'] = [dict(annotation, id=i) for i, annotation in enumerate(annotations, 1)]
    return COCO(content)
