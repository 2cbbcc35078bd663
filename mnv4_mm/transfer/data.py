"""A digest that identifies the data of transfer runs."""

import hashlib
import json
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.digest import file_digest
from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines

HASHED = 2**16  # bytes at the start of each image that are hashed


def data_digest(cfg: Config) -> str:
    """Return a digest of the images, labels and class names of the training and test data.

    Of each image, only the name, the file size and the first 64 KiB are hashed, so that COCO takes minutes instead of
    an hour.

    Args:
        cfg: Config with ``train_dataloader`` and ``test_dataloader``.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for loader in ('train_dataloader', 'test_dataloader'):
        dataset = innermost_dataset(cfg[loader].dataset).copy()
        dataset['pipeline'] = []
        with without_lines(READING_ANNOTATIONS), DefaultScope.overwrite_default_scope(cfg.default_scope):
            built = DATASETS.build(dataset)
        for i in range(len(built)):
            info = built.get_data_info(i)
            image = Path(info['img_path'])
            labels = (
                file_digest(info['seg_map_path']).hexdigest()
                if info.get('seg_map_path')
                else [[box['bbox'], box['bbox_label'], box['ignore_flag']] for box in info['instances']]
            )
            with image.open('rb') as file:
                start = hashlib.sha256(file.read(HASHED)).hexdigest()
            digest.update(json.dumps([loader, image.name, image.stat().st_size, start, labels]).encode())
        digest.update(json.dumps(built.metainfo['classes']).encode())
    return digest.hexdigest()[:16]
