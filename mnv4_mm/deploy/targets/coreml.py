"""Core ML: an ``.mlpackage``, converted on Linux or macOS, run on macOS and iOS only."""

import gc
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnv4_mm.deploy.layers_file import write_layers
from mnv4_mm.deploy.sensitivity import SensitiveLayer, find_layers
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import float_program
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import META_KEY, OUTPUTS, Meta, Precision
from mnv4_mm.runtime.quiet import coremltools

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph

FLOAT32 = 65568  # its number in Core ML's ArrayFeatureType
HALF_STEP = 2**-11  # largest relative error of a number that is rounded to half precision


class CoreML(Target):
    name = 'coreml'
    kinds = ('raw', 'logits')
    precisions = ('fp32', 'fp16', 'int8')
    distributions = ('coremltools',)
    calibrates_again = True
    layout = 'NCHW'
    dtype = 'float32'

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        ct = coremltools()
        program, quantised = float_program(graph, precision, calibration)
        to = graph.meta.input
        shape = tuple(graph.example().shape)
        if to.normalise:
            image = ct.TensorType(name='image', shape=shape)
        else:  # an image as the camera returns it
            layout = ct.colorlayout.RGB if to.channel_order == 'RGB' else ct.colorlayout.BGR
            image = ct.ImageType(name='image', shape=shape, color_layout=layout)
        # coremltools prints progress bars, uses its own deprecated functions, and leaves temporary folders behind until
        # the model is garbage-collected.
        with redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model = ct.convert(
                program.run_decompositions({}),
                inputs=[image],
                outputs=[ct.TensorType(name=name, dtype=np.float32) for name in OUTPUTS[graph.meta.kind]],
                minimum_deployment_target=ct.target.iOS16,
                # Weights in 8 bits are for the Neural Engine, which computes in half precision only.
                compute_precision=ct.precision.FLOAT32 if precision == 'fp32' else ct.precision.FLOAT16,
            )
            if quantised:
                model = int8_weights(model, quantised.sensitive)
            model.user_defined_metadata[META_KEY] = graph.meta.to_json()
            model.save(str(path))
            del model
            gc.collect()
        return [path, *write_layers(path, quantised, graph.calibration)]

    def inspect(self, path: Path, meta: Meta) -> str:
        """Compare the description of the model in the file with the metadata, and summarise this description.

        Compared are the names of inputs and outputs, the size of the input, the number of classes and the data type of
        the outputs.

        Args:
            path: The ``.mlpackage``.
            meta: Metadata of the file.

        Returns:
            Inputs, outputs and number of operations and, for int8, the number of weights in 8 bits.

        Raises:
            UserError: The description does not fit the metadata.
        """
        spec = coremltools().utils.load_spec(str(path))
        inputs = {item.name: item.type.WhichOneof('Type') for item in spec.description.input}
        outputs = {item.name: list(item.type.multiArrayType.shape) for item in spec.description.output}
        assert meta.input.size is not None
        image = spec.description.input[0].type
        size = [image.imageType.height, image.imageType.width]
        if meta.input.normalise:
            size = list(image.multiArrayType.shape[2:])
        types = {item.type.multiArrayType.dataType for item in spec.description.output}
        classes = len(meta.classes)
        fits = (
            list(outputs) == list(OUTPUTS[meta.kind])
            and list(inputs) == ['image']
            and size == list(meta.input.size)
            and types == {FLOAT32}
            and (outputs['scores'][2] if meta.kind == 'raw' else outputs['logits'][1]) == classes
        )
        if not fits:
            raise UserError(
                f'{path.name} takes {inputs} of {size} and returns {outputs} of type {types}; its metadata does not '
                f'fit: {meta.input.size}, {" and ".join(OUTPUTS[meta.kind])} of {classes} classes, float32 ({FLOAT32})'
            )
        operations = spec.mlProgram.functions['main'].block_specializations
        kinds = [operation.type for block in operations.values() for operation in block.operations]
        text = f'its description: {inputs} -> {outputs}, {len(kinds)} operations'
        if meta.precision == 'int8':
            text += f', {kinds.count("constexpr_affine_dequantize")} of them weights in 8 bits'
        return text


def int8_weights(model: Any, sensitive: Sequence[SensitiveLayer]) -> Any:
    """Quantise the weights of a model to int8 with one scale per output channel. The arithmetic stays in fp16.

    Activations are not quantised, because coremltools can do that on macOS only. Only weights of convolutions and
    linear layers with more than 2048 numbers are quantised, except those of sensitive layers.

    Args:
        model: ``coremltools.models.MLModel``.
        sensitive: The layers whose weights stay in fp16.

    Returns:
        The quantised ``MLModel``.

    Raises:
        UserError: The weights of a sensitive layer are not in the model.
    """
    from coremltools.optimize import coreml as optimize

    config = optimize.OpLinearQuantizerConfig(mode='linear_symmetric', dtype='int8', granularity='per_channel')
    # Named after operators; found by values, as the names are not those of the graph.
    stored = {
        name: np.sort(np.asarray(weight.val, np.float32), axis=None)
        for name, weight in optimize.get_weights_metadata(model, weight_threshold=config.weight_threshold).items()
    }
    in_float = {}
    for layer in sensitive:
        if layer.weights is None or layer.weights.size <= config.weight_threshold:
            continue
        in_float.update(dict.fromkeys(find_layers(layer, stored, 'the file', HALF_STEP)))
    # Not all constants: anchors need more than 8 bits.
    kinds = dict.fromkeys(('conv', 'conv_transpose', 'linear'), config)
    return optimize.linear_quantize_weights(
        model, optimize.OptimizationConfig(op_type_configs=kinds, op_name_configs=in_float)
    )
