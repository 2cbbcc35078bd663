"""A digest that identifies the data of transfer runs."""

import hashlib
import json

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mnv4_mm.config.data import innermost_dataset
from mnv4_mm.data.fingerprint import fingerprint
from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines


def data_digest(cfg: Config) -> str:
    """Return a digest of the images, labels and class names of the training and test data.

    Of each image, only a part is hashed, see ``fingerprint``.

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
            digest.update(json.dumps([loader, *fingerprint(built.get_data_info(i))]).encode())
        digest.update(json.dumps(built.metainfo['classes']).encode())
    return digest.hexdigest()[:16]
