"""Every test of this folder is marked ``long``: `make test-long` runs it, `make test` does not."""

from pathlib import Path

import pytest

from mnv4_mm.data.drawn import draw_dataset

HERE = Path(__file__).parent
BACKGROUNDS = HERE.parents[1] / 'data/mini/coco/train2017'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope='session')
def drawn(once) -> Path:
    """768 training and 64 validation images of 320 pixels with drawn shapes, for detection."""
    return once('long', lambda out: draw_dataset(out / 'shapes', BACKGROUNDS, 768, 64, size=320, seed=0)) / 'shapes'


@pytest.fixture(scope='session')
def drawn_masks(once) -> Path:
    """3072 training and 64 validation images of 160 pixels with drawn shapes, for segmentation."""
    return once('masks', lambda out: draw_dataset(out / 'shapes', BACKGROUNDS, 3072, 64, size=160, seed=0)) / 'shapes'
