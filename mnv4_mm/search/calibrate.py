"""Statistics of the batch norms of a net that took its weights from a supernet."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def recalibrate(model: Any, batches: Iterable[Any]) -> None:
    """Set the running statistics of all batch norms to the means over some images (arXiv 1903.05134, section 3.3).

    The statistics of the supernet are those of its largest net. Other layers, such as dropout, stay in evaluation mode.

    Args:
        model: A model of mmdet or mmseg in evaluation mode; changed in place.
        batches: Batches of a data loader of the test pipeline, at least one.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        nn.Module.train(norm)
    try:
        with torch.no_grad():
            for batch in batches:
                data = model.data_preprocessor(batch, False)
                model(data['inputs'], data['data_samples'], mode='tensor')
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
