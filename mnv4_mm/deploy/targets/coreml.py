"""Core ML: an ``.mlpackage``, converted on Linux or macOS, run on macOS and iOS only."""

import gc
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import META_KEY, OUTPUTS, Meta, Precision
from mnv4_mm.runtime.quiet import coremltools

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph

FLOAT32 = 65568  # its number in Core ML's ArrayFeatureType


class CoreML(Target):
    name = 'coreml'
    kinds = ('raw', 'logits')
    precisions = ('fp32', 'fp16')
    distributions = ('coremltools',)
    layout = 'NCHW'
    dtype = 'float32'

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        ct = coremltools()
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
                graph.program().run_decompositions({}),
                inputs=[image],
                outputs=[ct.TensorType(name=name, dtype=np.float32) for name in OUTPUTS[graph.meta.kind]],
                minimum_deployment_target=ct.target.iOS16,
                compute_precision=ct.precision.FLOAT16 if precision == 'fp16' else ct.precision.FLOAT32,
            )
            model.user_defined_metadata[META_KEY] = graph.meta.to_json()
            model.save(str(path))
            del model
            gc.collect()
        return [path]

    def inspect(self, path: Path, meta: Meta) -> str:
        """Compare the model's own description with the metadata, and return it.

        Compared are the names of inputs and outputs, the size of the input, the number of classes and the data type of
        the outputs.

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
                f'{path} takes {inputs} of {size} and returns {outputs} of type {types}; its metadata does not fit: '
                f'{meta.input.size}, {" and ".join(OUTPUTS[meta.kind])} of {classes} classes, float32 ({FLOAT32})'
            )
        operations = spec.mlProgram.functions['main'].block_specializations
        count = sum(len(block.operations) for block in operations.values())
        return f'its description: {inputs} -> {outputs}, {count} operations'
