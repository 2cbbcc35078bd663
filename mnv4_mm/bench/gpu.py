"""Training speed and GPU memory of each headline config, on batches of noise."""

import time
from collections.abc import Iterator

import torch

from mnv4_mm.bench.distillation import Step
from mnv4_mm.bench.measure import Figure

# Config -> batch size and side of the images in pixels, as in its recipe, except for RTMDet, which trains at 640.
CONFIGS = {
    'mnv4_ssdlite_coco': (32, 320),
    'mnv4_retinanet_coco': (16, 384),
    'mnv4_rtmdet_coco': (32, 320),
    'mnv4_lraspp_ade20k': (16, 512),
    'mnv4_fpn_ade20k': (16, 512),
    'mnv4_deeplabv3plus_ade20k': (16, 512),
    'mnv4_segformer_ade20k': (16, 512),
}


def gpu_figures(steps: int = 20, warm_up: int = 5) -> Iterator[Figure]:
    """Measure the training of each headline config with its own backbone, in float32, fp16 and bf16.

    Args:
        steps: Number of timed steps.
        warm_up: Number of untimed steps before them.

    Yields:
        For each config and precision, the speed in images per second and the peak memory in MiB.
    """
    for name, (batch, size) in CONFIGS.items():
        for dtype in (None, 'fp16', 'bf16'):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            step = Step(name, batch, size, device='cuda', dtype=dtype, backbone=None)
            for _ in range(warm_up):
                step()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            torch.cuda.synchronize()
            rate = steps * batch / (time.perf_counter() - start)
            label = f'{name}, {dtype or "fp32"}, batch {batch}, {size}x{size}'
            yield Figure(label, rate, 'images/s')
            yield Figure(f'{label}: memory', torch.cuda.max_memory_allocated() / 2**20, 'MiB')
            del step
