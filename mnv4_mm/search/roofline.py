"""Latency of layers from their MACs and bytes, with the coefficients that ``predict.fit_roofline`` fits."""

from collections.abc import Iterable, Mapping

import numpy as np

from mnv4_mm.transfer.layers import Layer

KINDS = ('conv', 'depthwise', 'pointwise', 'attention')  # whose MACs count
ROOFLINE = (*KINDS, 'bytes', 'layers', 'constant')


def roofline_features(layers: Iterable[Layer]) -> np.ndarray:
    """Return the features from which the latency of layers is predicted: the values of ``ROOFLINE``.

    These are the MACs of each of ``KINDS``, the bytes that all layers read and write, the number of layers, and 1.
    """
    values = dict.fromkeys(ROOFLINE, 0.0) | dict(constant=1.0)
    for layer in layers:
        if layer.kind in KINDS:
            values[layer.kind] += layer.repeats * layer.macs
        values['bytes'] += layer.repeats * layer.bytes
        values['layers'] += layer.repeats
    return np.array(list(values.values()))


def roofline_ms(coefficients: Mapping[str, float], features: np.ndarray) -> float:
    """Return the latency in ms that coefficients of ``ROOFLINE`` predict."""
    return float(features @ [coefficients[name] for name in ROOFLINE])
