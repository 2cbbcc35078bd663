"""Count the images and boxes that mmdet trains on. mmdet leaves out the others silently. Imports nothing heavy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnv4_mm.errors import UserError


@dataclass(frozen=True)
class Trained:
    """Images and boxes of a split that mmdet trains on.

    Attributes:
        images: Number of images that are trained on.
        boxes: Number of boxes that are trained on.
        all_images: Number of images in the annotation file.
        all_boxes: Number of boxes in the annotation file.
        reasons: Number of images or boxes that are left out, by reason.
    """

    images: int
    boxes: int
    all_images: int
    all_boxes: int
    reasons: dict[str, int]

    def require_some(self, path: Path) -> None:
        """Check that there is something to train on.

        Args:
            path: The annotation file, for the message.

        Raises:
            UserError: No box is left to train on.
        """
        if not self.boxes:
            raise UserError(
                f'{path}: {self}; filter_cfg of the training data set decides which images are left out (a smaller '
                'min_size there takes smaller images), and its classes decide which boxes'
            )

    def __str__(self) -> str:
        text = (
            f'{self.images} of {self.all_images} images and {self.boxes} of {self.all_boxes} boxes will be trained on'
        )
        left_out = ', '.join(f'{count} {reason}' for reason, count in self.reasons.items() if count)
        return f'{text} (left out: {left_out})' if left_out else text


def count_trained(
    content: Mapping[str, Any], filter_cfg: Mapping[str, Any] | None = None, classes: Sequence[str] | None = None
) -> Trained:
    """Count the images and boxes that mmdet's ``CocoDataset`` trains on, by the rules of ``CocoDataset``.

    Args:
        content: Parsed content of a COCO annotation file.
        filter_cfg: ``filter_cfg`` of the data set: ``filter_empty_gt`` and ``min_size`` (in pixels). None leaves out no
            image.
        classes: Class names of the data set. None uses all categories of the file.
    """
    filter_cfg = filter_cfg or {}
    min_size = filter_cfg.get('min_size', 0)
    category_ids = {item['id'] for item in content['categories'] if classes is None or item['name'] in classes}
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in content['annotations']:
        by_image.setdefault(annotation['image_id'], []).append(annotation)
    too_small, unlabelled = f'images smaller than {min_size} pixels', 'images without boxes'
    reasons = dict.fromkeys((too_small, unlabelled, 'boxes of small images', 'boxes of other classes'), 0)
    images = boxes = 0
    for number, size in sizes.items():
        annotations = by_image.get(number, [])
        # An image that is left out is counted once, under the first reason.
        if min(size) < min_size:
            reasons[too_small] += 1
            reasons['boxes of small images'] += len(annotations)
            continue
        if filter_cfg.get('filter_empty_gt') and not any(item['category_id'] in category_ids for item in annotations):
            reasons[unlabelled] += 1
            reasons['boxes of other classes'] += len(annotations)
            continue
        images += 1
        for annotation in annotations:
            reason = _reason(annotation, size, category_ids)
            boxes += not reason
            if reason:
                reasons[reason] = reasons.get(reason, 0) + 1
    return Trained(images, boxes, len(sizes), len(content['annotations']), reasons)


def _reason(annotation: Mapping[str, Any], size: tuple[int, int], category_ids: set[int]) -> str:
    """Return why a box is not trained on; empty if it is."""
    x, y, width, height = annotation['bbox']
    inside_x = min(x + width, size[0]) - max(x, 0)
    inside_y = min(y + height, size[1]) - max(y, 0)
    if annotation.get('ignore'):
        return 'boxes marked "ignore"'
    if any(map(math.isnan, annotation['bbox'])):
        return 'boxes that are not finite'
    if inside_x <= 0 or inside_y <= 0:
        return 'boxes outside of their image'
    if annotation['area'] <= 0:
        return 'boxes with the area 0'
    if width < 1 or height < 1:
        return 'boxes smaller than a pixel'
    if annotation['category_id'] not in category_ids:
        return 'boxes of other classes'
    return 'crowds' if annotation.get('iscrowd') else ''
