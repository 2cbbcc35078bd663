"""Batches of one image are refused before the data is read, where the model cannot be trained with them."""

import pytest

from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.training import training_config
from mnv4_mm.errors import UserError


@pytest.mark.parametrize(
    ('config', 'size', 'batch', 'reason'),
    [
        ('mnv4_ssdlite_coco', None, 1, 'smallest feature map is 1x1'),
        ('mnv4_ssdlite_coco', (512,), 1, 'smallest feature map is 1x1'),
        ('mnv4_ssdlite_coco', (544,), 1, None),
        ('mnv4_ssdlite_coco', None, 2, None),
        ('mnv4_retinanet_coco', None, 1, None),
        ('mnv4_deeplabv3plus_ade20k', None, 1, 'pooling over the image'),
        ('mnv4_lraspp_ade20k', None, 1, None),
    ],
)
def test_batches_of_one_image(config, size, batch, reason):
    options = TrainOptions(size=size, cfg_options={'train_dataloader.batch_size': batch})
    if reason is None:
        assert training_config(config, options).train_dataloader.batch_size == batch
        return
    with pytest.raises(UserError, match=f'{reason}.*batches of at least two images'):
        training_config(config, options)
