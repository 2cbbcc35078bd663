"""The part of the training images that is held out to score nets on.

Whether an image is held out depends only on its path, not on the order or the number of the images.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from mnv4_mm.errors import UserError

KEY = 'held_out'  # in the config of a data loader


def is_held_out(name: str, share: float) -> bool:
    """Return True if an image is held out.

    Args:
        name: Path of the image, relative to the folder of the images.
        share: Probability that an image is held out.
    """
    digest = hashlib.sha256(name.encode(errors='surrogateescape')).digest()
    return int.from_bytes(digest[:8], 'big') < share * 2**64


def image_names(dataset: Any) -> list[str]:
    """Return the path of each image of an initialised data set of mmengine, relative to the folder of its images."""
    prefix = dataset.data_prefix.get('img') or dataset.data_prefix.get('img_path') or ''
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    return [os.path.relpath(path, prefix) if prefix else path for path in paths]


def part_of(dataset: Any, share: float, *, scored: bool, selected: Sequence[int] | None = None) -> list[int]:
    """Return the indices of the images of a data set that are held out, or of the others.

    Args:
        dataset: A data set of mmengine that has been initialised.
        share: See ``is_held_out``.
        scored: True for the images that are held out, False for the others.
        selected: Indices to choose from; all if None.

    Raises:
        UserError: No image is held out, or all are.
    """
    names = image_names(dataset)
    selected = range(len(names)) if selected is None else selected
    held_out = {i: is_held_out(names[i], share) for i in selected}
    if len(set(held_out.values())) < 2:
        problem = 'all' if any(held_out.values()) else 'none'
        raise UserError(
            f'{problem} of the {len(held_out)} training images would be held out to score nets: a supernet needs more '
            'images'
        )
    return [i for i in selected if held_out[i] == scored]
