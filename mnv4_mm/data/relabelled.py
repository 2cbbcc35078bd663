"""A segmentation data set whose labels are in another order than the values of its masks."""

from collections.abc import Sequence
from typing import Any

from mmseg.registry import DATASETS

from mnv4_mm.quiet import MISSING_OPTIONAL, without_lines

with without_lines(MISSING_OPTIONAL):
    from mmseg.datasets import BaseSegDataset


@DATASETS.register_module()
class RelabelledSegDataset(BaseSegDataset):
    """mmseg's ``BaseSegDataset`` for classes in another order than in the masks.

    mmseg itself maps labels only for data set classes with ``METAINFO['classes']``.

    Args:
        file_classes: Class names in the order of the mask values; the same names as ``metainfo['classes']``.
        lazy_init: See mmengine's ``BaseDataset``.
        **kwargs: See ``BaseSegDataset``.
    """

    def __init__(self, file_classes: Sequence[str], lazy_init: bool = False, **kwargs: Any) -> None:
        super().__init__(lazy_init=True, **kwargs)
        classes = list(self.metainfo['classes'])
        self.label_map = {label: classes.index(name) for label, name in enumerate(file_classes)}
        if not lazy_init:
            self.full_init()
