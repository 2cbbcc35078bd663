"""Ranges of the values that are rounded to 8 bits, measured on calibration images.

ONNX Runtime's calibrators are not used: all except the one for minimum and maximum keep the values of all images in
memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mnv4_mm.deploy.onnx_values import intermediate_values

BINS = 2048
STEPS = 255  # between the 256 values of 8 bits
SHARES = np.linspace(1, 0.2, 81)  # of the full range that are tried


class Range(NamedTuple):
    """Smallest and largest number that 8 bits represent. The range includes 0."""

    low: float
    high: float

    def least_error(self, counts: np.ndarray) -> 'Range':
        """Return the range with the least mean square error of rounding and clipping.

        The candidates are this range times each of ``SHARES``.

        Args:
            counts: Number of values in each of ``BINS`` bins of equal width over this range, (BINS,).
        """
        edges = np.linspace(self.low, self.high, BINS + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        errors = []
        for share in SHARES:
            clipped = np.clip(centres, share * self.low, share * self.high)
            step = share * (self.high - self.low) / STEPS
            # The error of a rounded value is spread evenly over one step. That of a clipped one is its distance.
            error = np.where(clipped == centres, step**2 / 12, (centres - clipped) ** 2)
            errors.append((counts * error).sum())
        share = float(SHARES[int(np.argmin(errors))])
        return Range(share * self.low, share * self.high)


def measure_ranges(model: Any, batches: Sequence[np.ndarray]) -> dict[str, Range]:
    """Measure the ranges of the input, the intermediate values and the outputs of a net.

    Args:
        model: ``onnx.ModelProto`` of the float net, with the shapes of its values.
        batches: Inputs made of real images, one image each.

    Returns:
        The smallest and the largest element of each float value over all batches, extended to include 0, by the name of
        the value.
    """
    import onnx

    # Shapes may remain of values that an optimisation of the graph has removed.
    existing = {model.graph.input[0].name, *(name for node in model.graph.node for name in node.output)}
    names = [
        value.name
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name in existing
    ]
    run = intermediate_values(model, names)
    ranges = dict.fromkeys(names, Range(0.0, 0.0))
    for batch in batches:
        for name, values in run(batch).items():
            low, high = ranges[name]
            ranges[name] = Range(min(low, float(values.min())), max(high, float(values.max())))
    return ranges


def clip_ranges(model: Any, ranges: Mapping[str, Range], batches: Sequence[np.ndarray]) -> dict[str, Range]:
    """Shrink ranges to those with the least mean square error of rounding and clipping, see ``Range.least_error``.

    Args:
        model: See ``measure_ranges``.
        ranges: The result of ``measure_ranges``.
        batches: See ``measure_ranges``.

    Returns:
        The new ranges, by the same names.
    """
    run = intermediate_values(model, list(ranges))
    counts = {name: np.zeros(BINS, np.int64) for name in ranges}
    for batch in batches:
        for name, values in run(batch).items():
            if ranges[name].low < ranges[name].high:
                counts[name] += np.histogram(values, BINS, ranges[name])[0]
    return {name: one.least_error(counts[name]) for name, one in ranges.items()}
