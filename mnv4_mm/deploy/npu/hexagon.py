"""Qualcomm Hexagon: int8 ONNX files, compiled to a context binary by ONNX Runtime's QNN execution provider."""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mnv4_mm.deploy.npu.base import TIMEOUT, Npu, Operator, Placement, compilers, placement
from mnv4_mm.errors import UserError

# Version of the tensor processor -> number of a chip that has it, as Qualcomm's SDK counts them: SM8550 (Snapdragon
# 8 Gen 2), SM8650 (8 Gen 3), SM8750 (8 Elite). The size of its memory on the chip depends on it.
CHIPS = {'v73': 43, 'v75': 57, 'v79': 69}
WEIGHTED = ('Conv', 'MatMul', 'Gemm', 'ConvTranspose')
ROUNDING = ('QuantizeLinear', 'DequantizeLinear')
SCRIPT = Path(__file__).with_name('hexagon_compile.py')


class Hexagon(Npu):
    """A Hexagon tensor processor (HTP). Its compiler estimates neither latency nor memory.

    Args:
        version: Version of the processor, a key of ``CHIPS``.
    """

    target = 'onnx'
    package = 'onnxruntime-qnn'
    module = 'onnxruntime_qnn'

    def __init__(self, version: str) -> None:
        self.name = f'hexagon-{version}'
        self.version = version

    def place(self, path: Path) -> Placement:
        """Compile an ONNX file with ONNX Runtime's QNN execution provider, see ``Npu.place``."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            context, job = Path(folder) / 'context.onnx', Path(folder) / 'job.json'
            files = dict(path=str(path.absolute()), context=str(context))
            job.write_text(json.dumps(files | dict(version=self.version[1:], chip=str(CHIPS[self.version]))))
            command = [str(compilers()), '-I', str(SCRIPT), str(job)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)  # noqa: S603
            if done.returncode or not context.is_file():
                text = (done.stderr.strip() or 'nothing of it can run there').splitlines()
                raise UserError(f'{path.name} is not compiled for {self.name}: {text[-1][:300]}')
            compiled = onnx.load(context, load_external_data=False).graph
        # What the NPU does not take is left in the graph, beside nodes that stand for its parts.
        on_cpu = {name for node in compiled.node if node.op_type != 'EPContext' for name in node.output}
        operators = _operators(onnx.load(path).graph)
        return placement(operators, WEIGHTED, [bool(on_cpu.intersection(one.outputs)) for one in operators])


def _operators(graph: Any) -> list[Operator]:
    """List the nodes of a graph in QDQ form, without those that quantise and dequantise."""
    # A tensor and what rounding makes of it count as the same tensor.
    original: dict[str, str] = {}
    weights = {tensor.name for tensor in graph.initializer}
    operators = []
    for node in graph.node:
        inputs = tuple(original.get(name, name) for name in node.input if name)
        if node.op_type in ROUNDING:
            original[node.output[0]] = inputs[0]
            continue
        layer = next((name for name in inputs[1:2] if name in weights), node.name)
        layer = re.sub(r'_quantized$|(_folded|_scaled|_centre)_\d+|\.weight', '', layer)
        operators.append(Operator(node.op_type, layer, inputs, tuple(node.output)))
    return operators


ALL = [Hexagon(version) for version in CHIPS]
