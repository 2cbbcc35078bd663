"""Core ML: converted anywhere, run on macOS and iOS only."""

import gc
import platform
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.quiet import coremltools
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import OUTPUTS, Meta, Precision
from mnv4_mm.runtime.predictor import Session

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


FLOAT32 = 65568  # Core ML's ArrayFeatureType of it


class CoreML(Target):
    name = 'coreml'
    suffix = '.mlpackage'
    runtime = ('coremltools',)
    install = "pip install -e '.[coreml]'"
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
            given = ct.TensorType(name='image', shape=shape)
        else:  # a picture as the camera gives it
            layout = ct.colorlayout.RGB if to.channel_order == 'RGB' else ct.colorlayout.BGR
            given = ct.ImageType(name='image', shape=shape, color_layout=layout)
        # Progress bars, its use of what it deprecates itself, folders that it leaves to the garbage collector.
        with redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model = ct.convert(
                graph.program().run_decompositions({}),
                inputs=[given],
                outputs=[ct.TensorType(name=name, dtype=np.float32) for name in OUTPUTS[graph.meta.kind]],
                minimum_deployment_target=ct.target.iOS16,
                compute_precision=ct.precision.FLOAT16 if precision == 'fp16' else ct.precision.FLOAT32,
            )
            model.user_defined_metadata['mnv4_mm'] = graph.meta.to_json()
            model.save(str(path))
            del model
            gc.collect()
        return [path]

    def cannot_run(self) -> str | None:
        system = platform.system()
        return None if system == 'Darwin' else f'Core ML runs on macOS and iOS only, this is {system}'

    def inspect(self, path: Path, meta: Meta) -> str:
        """Reads the model's own description: names, shapes and types of what goes in and comes out."""
        spec = coremltools().utils.load_spec(str(path))
        inputs = {item.name: item.type.WhichOneof('Type') for item in spec.description.input}
        outputs = {item.name: list(item.type.multiArrayType.shape) for item in spec.description.output}
        assert meta.input.size is not None
        given = spec.description.input[0].type
        size = [given.imageType.height, given.imageType.width]
        if meta.input.normalise:
            size = list(given.multiArrayType.shape[2:])
        single = {item.type.multiArrayType.dataType for item in spec.description.output} == {FLOAT32}
        classes = len(meta.classes)
        fits = (
            list(outputs) == list(OUTPUTS[meta.kind])
            and list(inputs) == ['image']
            and size == list(meta.input.size)
            and single
            and (outputs['scores'][2] if meta.kind == 'raw' else outputs['logits'][1]) == classes
        )
        if not fits:
            raise UserError(
                f'{path} takes {inputs} of {size} and gives {outputs}, not what its JSON says: {meta.input.size}, '
                f'{" and ".join(OUTPUTS[meta.kind])} of {classes} classes, float32'
            )
        operations = spec.mlProgram.functions['main'].block_specializations
        count = sum(len(block.operations) for block in operations.values())
        return f'its description: {inputs} -> {outputs}, {count} operations'

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        cannot = self.cannot_run()
        if cannot:
            raise UserError(f'{path}: {cannot}')
        from PIL import Image

        ct = coremltools()
        model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.CPU_ONLY)

        def run(batch: np.ndarray) -> list[np.ndarray]:
            pixels = batch[0].transpose(1, 2, 0).astype(np.uint8)
            if meta.input.channel_order == 'BGR':  # the model turns RGB into it by itself
                pixels = pixels[..., ::-1]
            given = batch if meta.input.normalise else Image.fromarray(np.ascontiguousarray(pixels))
            found = model.predict({'image': given})
            return [found[name] for name in OUTPUTS[meta.kind]]

        return run
