"""A training step of MNv4-Conv-S + SSDLite: what each option of `tools/train.py` is worth, and where the time goes."""

import copy
import itertools
import time
from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.testing import demo_mm_inputs
from mmengine.optim import OptimWrapper, build_optim_wrapper

from mnv4_mm.bench.measure import Figure, Pair
from mnv4_mm.config.load import load_config
from mnv4_mm.config.optimizer import fit_optimizer, fit_precision
from mnv4_mm.engine.step import compile_parts, use_channels_last
from mnv4_mm.tasks import build_model


class Step:
    """A net, its optimiser and a batch of noise with up to ten boxes a picture."""

    def __init__(
        self,
        batch: int,
        size: int,
        channels_last: bool = False,
        bf16: bool = False,
        fused: bool = False,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        cfg = load_config('mnv4_ssdlite_coco')
        model: Any = build_model(cfg)
        self.model = model
        self.model.init_weights()
        self.model.train()
        if channels_last:
            use_channels_last(self.model)
        wrapper = fit_optimizer(fit_precision(cfg, 'bf16', False) if bf16 else cfg, fused).optim_wrapper
        self.optimizer: OptimWrapper = build_optim_wrapper(self.model, wrapper)
        if compiled:
            compile_parts(self.model)
        self.data = demo_mm_inputs(batch, [[3, size, size]] * batch, num_classes=80)

    def __call__(self) -> dict[str, float]:
        """Makes a step; returns the seconds of its parts."""
        model, clock = self.model, [time.perf_counter()]

        def tick() -> None:
            clock.append(time.perf_counter())

        with self.optimizer.optim_context(model):
            data = model.data_preprocessor(copy.deepcopy(self.data), training=True)
            tick()
            outputs = model.bbox_head(model.extract_feat(data['inputs']))
            tick()
            truth, ignored, metas = unpack_gt_instances(data['data_samples'])
            loss, _ = model.parse_losses(model.bbox_head.loss_by_feat(*outputs, truth, metas, ignored))
            tick()
        loss.backward()
        tick()
        self.optimizer.step()
        self.optimizer.zero_grad()
        tick()
        names = ('normalise and stack', 'forward', 'targets and loss', 'backward', 'optimiser')
        return {name: b - a for name, (a, b) in zip(names, itertools.pairwise(clock), strict=True)}


def step_pairs(batch: int = 16, size: int = 320) -> list[Pair]:
    """Each option alone, beside the step without it; compilation costs a minute or two once."""
    kind = f'step of SSDLite, batch {batch}, {size}x{size}'

    def pair(name: str, ours: dict[str, bool], theirs: dict[str, bool], wanted: float | None = None) -> Pair:
        return Pair(f'{kind}: {name}', Step(batch, size, **ours), Step(batch, size, **theirs), wanted, rounds=6)

    last = dict(channels_last=True)
    return [
        pair('channels last, against contiguous', last, {}, wanted=1.2),
        pair('bfloat16, against float32 (both channels last)', last | dict(bf16=True), last),
        pair('fused optimiser, against not (both channels last)', last | dict(fused=True), last),
        pair('compiled, against not (both channels last)', last | dict(compiled=True), last),
    ]


def profile(batch: int = 16, size: int = 320, rounds: int = 6) -> list[Figure]:
    """Share of each part in a step with the default options."""
    step = Step(batch, size, channels_last=True, fused=True)
    parts = [step() for _ in range(rounds + 2)][2:]
    whole = sum(sum(part.values()) for part in parts)
    return [
        Figure(f'share of a step of SSDLite: {name}', 100 * sum(part[name] for part in parts) / whole, '%')
        for name in parts[0]
    ]
