"""The table of full runs in docs/scaling.md follows from the configs."""

import math

import pytest

from mnv4_mm.config.load import load_config

COCO = 117_266  # images of train2017 with boxes
SPEEDS = (100, 1000, 5000)  # img/s


@pytest.mark.parametrize(
    'name',
    [
        'mnv4_ssdlite_coco',
        'mnv4_retinanet_coco',
        'mnv4_retinanet-1x_coco',
        'mnv4_rtmdet_coco',
        'mnv4_fpn_ade20k',
        'mnv4_lraspp_ade20k',
    ],
)
def test_full_runs(repository, name):
    cfg = load_config(name)
    loader, batch = cfg.train_dataloader, cfg.auto_scale_lr.base_batch_size
    processes, rest = divmod(batch, loader.batch_size)
    assert rest == 0
    if 'max_iters' in cfg.train_cfg:
        steps = cfg.train_cfg.max_iters
        images = steps * batch
    else:
        epoch = COCO * loader.dataset.get('times', 1)
        images = cfg.train_cfg.max_epochs * epoch
        # The last step of an epoch takes what is left.
        steps = cfg.train_cfg.max_epochs * math.ceil(math.ceil(epoch / processes) / loader.batch_size)
    hours = (f'{images / speed / 3600:,.1f}' for speed in SPEEDS)
    row = ' | '.join([name, f'{processes} x {loader.batch_size} = {batch:,}', f'{images:,}', f'{steps:,}', *hours])
    assert f'| {row} |' in (repository / 'docs/scaling.md').read_text()
