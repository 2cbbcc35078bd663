"""A part of the training images that is held out from training, to choose between nets by their scores on it.

An image belongs to the part by its file name, so that the part does not depend on the order or the number of images.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv4_mm.errors import UserError

KEY = 'held_out'  # in the config of a data set


def is_held_out(name: str, share: float) -> bool:
    """Return True if an image is held out.

    Args:
        name: File name or path of the image; only the file name counts.
        share: Probability that an image is held out.
    """
    digest = hashlib.sha256(Path(name).name.encode(errors='surrogateescape')).digest()
    return int.from_bytes(digest[:8], 'big') < share * 2**64


def part_of(dataset: Any, settings: Mapping[str, Any]) -> list[int]:
    """Return the indices of the images of a data set that are held out, or of the others.

    Args:
        dataset: A data set of mmengine that has been initialised.
        settings: ``share`` of ``is_held_out``, and ``scored``: True for the images that are held out.

    Raises:
        UserError: No image is held out, or all are.
    """
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    held_out = [is_held_out(path, settings['share']) for path in paths]
    if len(set(held_out)) < 2:
        problem = 'all' if any(held_out) else 'none'
        raise UserError(
            f'{problem} of the {len(paths)} training images would be held out to score nets: a supernet needs more '
            'images'
        )
    return [i for i, held in enumerate(held_out) if held == settings['scored']]
