"""Supernets of the tests of the search."""

from typing import Any

import pytest
from end_to_end import IN_PROCESS

from mnv4_mm.apis.train import train

DETECTOR = 'mnv4_ssdlite_coco-mini'


@pytest.fixture(scope='session')
def supernet(once, drawn):
    """Return a function that trains the supernet of a config for seconds, once, and returns its checkpoint."""

    def make(name):
        options = {**IN_PROCESS, 'train_dataloader.batch_size': 4, 'val_dataloader.dataset.indices': 2}
        options['report_on_training_images'] = False
        if name == DETECTOR:
            options['train_dataloader.dataset.times'] = 1
        length: dict[str, Any] = dict(epochs=1, size=[128]) if name == DETECTOR else dict(iters=4)
        arguments: dict[str, Any] = dict(data=str(drawn), space='small', cfg_options=options, **length)
        folder = once(f'supernet {name}', lambda out: train(name, work_dir=str(out), **arguments))
        return next(iter(sorted(folder.glob('[ei]*.pth'))))

    return make
