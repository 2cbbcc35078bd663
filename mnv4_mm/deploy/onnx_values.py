"""Intermediate values and node attributes of an ONNX net."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def intermediate_values(model: Any, names: Sequence[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function that runs an ``onnx.ModelProto`` and returns its intermediate values.

    Args:
        model: The net, with one input. It is copied.
        names: Names of the values to return. The names of the input and of outputs are allowed too.

    Returns:
        A function that takes a batch, in the shape and dtype of the input, and returns the values by name.
    """
    import onnx
    import onnxruntime as ort

    given = model.graph.input[0].name
    outputs = [name for name in dict.fromkeys(names) if name != given]
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    existing = {output.name for output in copied.graph.output}
    copied.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in existing)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copied.SerializeToString(), options, providers=['CPUExecutionProvider'])
    (model_input,) = session.get_inputs()

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        # Without names, all outputs would be computed.
        found = session.run(outputs, {model_input.name: batch}) if outputs else []
        values = dict(zip(outputs, found, strict=True))
        return values | ({given: batch} if given in names else {})

    return run


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of an ONNX node by name."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
