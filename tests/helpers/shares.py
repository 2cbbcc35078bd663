"""For the configs of processes.py: each process logs its images and its losses."""

import json
from pathlib import Path

import torch
from mmdet.models.task_modules.assigners import DynamicSoftLabelAssigner
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TASK_UTILS

# Both ways of training sum the same numbers in another order. In float32 that grows to a percent in 20 steps: RTMDet
# assigns boxes by comparing scores, and AdamW divides what is next to nothing. In float64 it stays far below 1e-5.
torch.set_default_dtype(torch.float64)


@HOOKS.register_module()
class ShareHook(Hook):
    """Write ``process<rank>.jsonl``, a line a step: images, losses, relative distance of the weights from the start."""

    def before_train(self, runner):
        self.start = self.weights(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        line = dict(
            step=runner.iter + 1,
            images=[Path(sample.img_path).name for sample in data_batch['data_samples']],
            losses={name: value.item() for name, value in outputs.items() if 'loss' in name},
            moved=float((self.weights(runner) - self.start).norm() / self.start.norm()),
        )
        with (Path(runner.work_dir) / f'process{get_rank()}.jsonl').open('a') as file:
            file.write(json.dumps(line) + '\n')

    @staticmethod
    def weights(runner):
        return torch.cat([weight.detach().flatten().double() for weight in runner.model.parameters()])


@TASK_UTILS.register_module()
class RoundingAssigner(DynamicSoftLabelAssigner):
    """RTMDet's assigner, which computes in float32, with overlaps in steps of 1/1024: sums of them are exact."""

    def assign(self, pred_instances, *args, **kwargs):
        single = pred_instances.new()
        for name in ('bboxes', 'scores', 'priors'):
            single[name] = pred_instances[name].float()
        result = super().assign(single, *args, **kwargs)
        result.max_overlaps = (result.max_overlaps * 1024).round() / 1024
        return result
