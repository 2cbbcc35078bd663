"""Speed of a training step of SSDLite with MNv4-Conv-S: each option of ``tools/train.py``, and the time by part."""

import copy
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.testing import demo_mm_inputs
from mmengine.optim import OptimWrapper, build_optim_wrapper

from mnv4_mm.bench.measure import Figure, Pair
from mnv4_mm.config.load import load_config
from mnv4_mm.config.optimizer import with_fused, with_precision
from mnv4_mm.engine.step import compile_parts, use_channels_last
from mnv4_mm.tasks import build_model


class Step:
    """A training step of ``mnv4_ssdlite_coco`` on the CPU, on random images with one to nine boxes each.

    Calling it runs a step, always on the same batch, and returns the time of each part in seconds, by name.

    Args:
        batch: Batch size.
        size: Height and width of the images in pixels.
        channels_last: See ``engine.step.use_channels_last``.
        bf16: Train in mixed precision with bfloat16.
        fused: Use a fused optimiser.
        compiled: Compile backbone, neck and head.
    """

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
        wrapper = with_fused(with_precision(cfg, 'bf16', False) if bf16 else cfg, fused).optim_wrapper
        self.optimizer: OptimWrapper = build_optim_wrapper(self.model, wrapper)
        if compiled:
            compile_parts(self.model)
        self.data = demo_mm_inputs(batch, [[3, size, size]] * batch, num_classes=80)

    def __call__(self) -> dict[str, float]:
        """Run a step and return the time of each part in seconds, by name."""
        model, times = self.model, [time.perf_counter()]

        def finish_part() -> None:
            times.append(time.perf_counter())

        with self.optimizer.optim_context(model):
            data = model.data_preprocessor(copy.deepcopy(self.data), training=True)
            finish_part()
            outputs = model.bbox_head(model.extract_feat(data['inputs']))
            finish_part()
            ground_truth, ignored, metas = unpack_gt_instances(data['data_samples'])
            loss, _ = model.parse_losses(model.bbox_head.loss_by_feat(*outputs, ground_truth, metas, ignored))
            finish_part()
        loss.backward()
        finish_part()
        self.optimizer.step()
        self.optimizer.zero_grad()
        finish_part()
        names = ('normalise and stack', 'forward', 'targets and loss', 'backward', 'optimiser')
        return {name: end - start for name, (start, end) in zip(names, itertools.pairwise(times), strict=True)}


def step_pairs(batch: int = 16, size: int = 320) -> list[Pair]:
    """Return pairs that time a training step with and without each option.

    In the first call of the compiled step, compilation takes a minute or two.

    Args:
        batch: Batch size.
        size: Height and width of the images in pixels.
    """

    def pair(name: str, ours: dict[str, bool], baseline: dict[str, bool], target: float | None = None) -> Pair:
        sides = Step(batch, size, **ours), Step(batch, size, **baseline)
        return Pair(f'step of SSDLite, batch {batch}, {size}x{size}: {name}', *sides, target, rounds=6)

    layout = dict(channels_last=True)
    return [
        pair('channels last, against contiguous', layout, {}, target=1.2),
        pair('bfloat16, against float32 (both channels last)', layout | dict(bf16=True), layout),
        pair('fused optimiser, against not (both channels last)', layout | dict(fused=True), layout),
        pair('compiled, against not (both channels last)', layout | dict(compiled=True), layout),
    ]


def profile(batch: int = 16, size: int = 320, rounds: int = 6) -> Iterator[Figure]:
    """Measure the share of each part in the time of a training step with the default options.

    Args:
        batch: Batch size.
        size: Height and width of the images in pixels.
        rounds: Number of timed steps, after two untimed ones.

    Yields:
        The share of each part in per cent.
    """
    step = Step(batch, size, channels_last=True, fused=True)
    steps = [step() for _ in range(rounds + 2)][2:]  # two rounds to warm up
    total = sum(sum(parts.values()) for parts in steps)
    for name in steps[0]:
        yield Figure(f'share of a step of SSDLite: {name}', 100 * sum(parts[name] for parts in steps) / total, '%')
