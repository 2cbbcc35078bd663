"""A training step of each headline config on a small batch of noise, the same at each call."""

import copy
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.optim import build_optim_wrapper

from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.load import load_config
from mnv4_mm.config.optimizer import with_precision
from mnv4_mm.tasks import build_model

DETECTORS = ['mnv4_ssdlite_coco', 'mnv4_retinanet_coco', 'mnv4_rtmdet_coco']
SEGMENTERS = ['mnv4_lraspp_ade20k', 'mnv4_fpn_ade20k', 'mnv4_deeplabv3plus_ade20k', 'mnv4_segformer_ade20k']


class Step:
    """The model of a config and one training step, the same at each call."""

    def __init__(self, name, batch, backbone='mnv4_conv_s', device='cpu', dtype=None, **optimizer):
        torch.manual_seed(0)
        cfg = load_config(name)
        cfg.model.backbone.pop('init_cfg', None)
        cfg = with_backbone(cfg, backbone)
        cfg.model.backbone.pop('init_cfg', None)
        cfg.model.backbone.pop('drop_path_rate', None)
        cfg.optim_wrapper.optimizer.update(optimizer)
        model: Any = build_model(cfg)
        self.model = model
        self.model.init_weights()
        if name in SEGMENTERS:
            self.model.data_preprocessor.size = (128, 128)
            self.data = batch(128, 128)
        else:
            self.data = demo_mm_inputs(2, [[3, 128, 128], [3, 128, 128]], num_classes=80)
        self.model.to(device)
        if dtype:
            cfg = with_precision(cfg, dtype, device != 'cpu')
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)

    def __call__(self):
        """Train one step and return the losses by name."""
        self.model.train()
        torch.manual_seed(1)  # of dropout
        with self.optimizer.optim_context(self.model):
            data = self.model.data_preprocessor(copy.deepcopy(self.data), training=True)
            total, losses = self.model.parse_losses(self.model(**data, mode='loss'))
        self.optimizer.update_params(total)
        return {key: float(value.detach()) for key, value in losses.items() if 'loss' in key}

    def weights(self):
        return {key: value.contiguous() for key, value in self.model.state_dict().items()}
