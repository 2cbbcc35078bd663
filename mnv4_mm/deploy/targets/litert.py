"""LiteRT (formerly TensorFlow Lite): a ``.tflite``, converted in an environment of its own."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnv4_mm.deploy.environments import python_of
from mnv4_mm.deploy.layers_file import write_layers
from mnv4_mm.deploy.sensitivity import SensitiveLayer
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import float_program
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import OUTPUTS, Precision

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mnv4_mm.deploy.graph import Graph

VARIABLE = 'MNV4_LITERT_PYTHON'  # the python of the environment
FOLDER = '.venv-litert'  # the environment, in the current folder or in the checkout
PACKAGES = ('litert-torch', 'ai-edge-quantizer')
SCRIPT = Path(__file__).with_name('litert_convert.py')


class LiteRT(Target):
    name = 'litert'
    kinds = ('raw', 'logits')
    precisions = ('fp32', 'fp16', 'int8')
    distributions = ('ai-edge-litert',)
    calibrates_again = True

    def absent(self, convert: bool = False) -> str | None:
        if convert and not converter().is_file():
            return (
                f'litert converts in an environment of its own, and there is no {converter()}: `make litert` in a '
                f'checkout, or set {VARIABLE} to the python of an environment with {" and ".join(PACKAGES)}'
            )
        return super().absent()

    def versions(self) -> dict[str, str]:
        lines = f'import importlib.metadata as m; print(*map(m.version, {PACKAGES}))'
        command = [str(converter()), '-I', '-c', lines]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise UserError(f'{converter()} lacks {" or ".join(PACKAGES)}: install them there, or run make litert')
        return super().versions() | dict(zip(PACKAGES, done.stdout.split(), strict=True))

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        program, quantised = float_program(graph, precision, calibration)
        convert(
            program,
            path,
            OUTPUTS[graph.meta.kind],
            precision,
            calibration,
            graph.meta.to_json(),
            quantised.sensitive if quantised else [],
            graph.layer_names(program.state_dict),
        )
        return [path, *write_layers(path, quantised, graph.calibration)]


def converter() -> Path:
    """Return the path of the Python interpreter of the environment with litert-torch. The file may not exist.

    The path is the value of the environment variable ``MNV4_LITERT_PYTHON`` or, if this variable is not set, that of
    the interpreter in ``.venv-litert``, see ``python_of``.
    """
    return python_of(VARIABLE, FOLDER)


def convert(
    program: 'ExportedProgram',
    path: Path,
    outputs: Sequence[str],
    precision: Precision = 'fp32',
    calibration: Sequence[np.ndarray] = (),
    description: str = '',
    sensitive: Sequence[SensitiveLayer] = (),
    layers: Mapping[str, str] | None = None,
) -> None:
    """Convert a net to a ``.tflite`` file, with litert-torch in the environment of ``converter``.

    Args:
        program: A float net with one input.
        path: The file to write.
        outputs: Names of the outputs, in the order in which the net returns them.
        precision: One of ``LiteRT.precisions``.
        calibration: For int8: inputs of the net, on which the ranges of activations are measured. Ignored otherwise.
        description: Text to be stored in the metadata of the file.
        sensitive: For int8: layers that stay in float. Operators that read a sensitive output stay in float too.
        layers: Names of layers by the names of their weights in ``program``, see ``Graph.layer_names``. The operators
            of the file are named after the layers. None to name no layers.

    Raises:
        UserError: The converter failed.
    """
    import torch

    with tempfile.TemporaryDirectory() as folder:
        names = ('net.pt2', 'inputs.npz', 'sensitive.npz', 'job.json')
        net, inputs, weights, job = (Path(folder) / name for name in names)
        torch.export.save(program, net)
        np.savez(inputs, *calibration)
        # Any: numpy's stubs would take the names for keyword arguments of savez.
        named: Any = {str(i): one.weights for i, one in enumerate(sensitive) if one.weights is not None}
        np.savez(weights, **named)
        files = dict(program=str(net), calibration=str(inputs), weights=str(weights), path=str(path.absolute()))
        in_float = [dict(product=one.product, output=one.output) for one in sensitive]
        options = dict(precision=precision, outputs=outputs, description=description, sensitive=in_float)
        job.write_text(json.dumps(files | options | dict(layers=dict(layers or {}))))
        # Isolated (-I): without PYTHONPATH, and without the folder of the script, whose onnx.py would hide the package.
        command = [str(converter()), '-I', str(SCRIPT), str(job)]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode or not path.is_file():
        reason = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
        raise UserError(f'conversion by {converter()} failed: {reason[:300]}')
