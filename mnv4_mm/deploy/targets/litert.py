"""LiteRT, once TensorFlow Lite: a .tflite file. Made in an environment of its own (``make litert``), run in this."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnv4_mm.deploy.sensitivity import LayerSensitivity, SensitiveLayer, write_layers
from mnv4_mm.deploy.targets.base import Target, unloadable
from mnv4_mm.deploy.targets.onnx import to_int8
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import OUTPUTS, Meta, Precision
from mnv4_mm.runtime.predictor import Session

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mnv4_mm.deploy.graph import Graph

VARIABLE = 'MNV4_LITERT_PYTHON'  # names the python of an environment elsewhere
FOLDER = Path(__file__).parents[3] / '.venv-litert'
SCRIPT = Path(__file__).with_name('litert_convert.py')


class LiteRT(Target):
    name = 'litert'
    suffix = '.tflite'
    runtime = ('ai_edge_litert',)
    install = "pip install -e '.[litert]'"
    kinds = ('raw', 'logits')
    precisions = ('fp32', 'fp16', 'int8')
    distributions = ('ai-edge-litert',)

    def absent(self, convert: bool = False) -> str | None:
        if convert and not converter().is_file():
            return (
                f'litert converts in an environment of its own, and there is no {converter()}: make litert, or name '
                f'its python in {VARIABLE}'
            )
        return super().absent(convert)

    def versions(self) -> dict[str, str]:
        own = ('litert-torch', 'ai-edge-quantizer')
        lines = f'import importlib.metadata as m; print(*map(m.version, {own}))'
        command = [str(converter()), '-I', '-c', lines]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise UserError(f'{converter()} lacks {" or ".join(own)}: make litert')
        return super().versions() | dict(zip(own, done.stdout.split(), strict=True))

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        errors: list[LayerSensitivity] = []
        fragile: list[SensitiveLayer] = []
        if precision == 'int8':
            _, errors, _, fragile = to_int8(graph, calibration)
        convert(graph.program(), path, OUTPUTS[graph.meta.kind], precision, calibration, graph.meta.to_json(), fragile)
        return [path, *write_layers(path, errors)]

    def session(self, path: Path, meta: Meta, threads: int | None = None) -> Session:
        from ai_edge_litert.interpreter import Interpreter

        try:
            # Left alone it uses one thread.
            interpreter = Interpreter(str(path), num_threads=threads or os.cpu_count())
            interpreter.allocate_tensors()
            ports = interpreter.get_signature_runner()
            given = ports.get_input_details()['image']['index']
            # By name: a file may have them in any order.
            outputs = [ports.get_output_details()[name]['index'] for name in OUTPUTS[meta.kind]]
        # ValueError, RuntimeError and others, whatever is wrong.
        except Exception as error:
            raise unloadable(path, error) from error

        def run(batch: np.ndarray) -> list[np.ndarray]:
            interpreter.set_tensor(given, batch)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in outputs]  # copies

        return run


def converter() -> Path:
    """The python of the environment that has litert-torch."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else FOLDER / 'bin' / 'python'


def convert(
    program: 'ExportedProgram',
    path: Path,
    outputs: Sequence[str],
    precision: Precision = 'fp32',
    calibration: Sequence[np.ndarray] = (),
    description: str = '',
    fragile: Sequence[SensitiveLayer] = (),
) -> None:
    """Writes a .tflite file.

    Args:
        program: A net with one input.
        path: The file.
        outputs: Names of what it gives.
        precision: See ``LiteRT.precisions``.
        calibration: For int8: inputs.
        description: Text to be put into the file.
        fragile: For int8: layers that stay in float; where it is the output that hurts, with what reads it.

    Raises:
        UserError: the converter failed.
    """
    import torch

    with tempfile.TemporaryDirectory() as folder:
        names = ('net.pt2', 'inputs.npz', 'fragile.npz', 'job.json')
        net, inputs, weights, job = (Path(folder) / name for name in names)
        torch.export.save(program, net)
        np.savez(inputs, *calibration)
        # To numpy's stubs the names could be its own arguments.
        named: Any = {str(i): one.weights for i, one in enumerate(fragile) if one.weights is not None}
        np.savez(weights, **named)
        files = dict(program=str(net), calibration=str(inputs), weights=str(weights), path=str(path.absolute()))
        layers = [dict(product=one.product, output=one.output) for one in fragile]
        how = dict(precision=precision, outputs=outputs, description=description, fragile=layers)
        job.write_text(json.dumps(files | how))
        # Isolated (-I): without PYTHONPATH, and without the script's folder, whose onnx.py would hide the package.
        command = [str(converter()), '-I', str(SCRIPT), str(job)]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode or not path.is_file():
        reason = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
        raise UserError(f'conversion by {converter()} failed: {reason[:300]}')
