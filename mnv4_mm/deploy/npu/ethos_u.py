"""Arm Ethos-U: int8 LiteRT files, compiled by Vela."""

import csv
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mnv4_mm.deploy.npu.base import TIMEOUT, Npu, Operator, Placement, compilers, placement
from mnv4_mm.errors import UserError

# Sizes in MACs per cycle, and Vela's reference system and memory mode that it takes for them by default.
FAMILIES: dict[str, tuple[tuple[int, ...], str, str]] = {
    'ethos-u55': ((32, 64, 128, 256), 'Ethos_U55_High_End_Embedded', 'Shared_Sram'),
    'ethos-u65': ((256, 512), 'Ethos_U65_Client_Server', 'Dedicated_Sram_384KB'),
    'ethos-u85': ((128, 256, 512, 1024, 2048), 'Ethos_U85_SYS_DRAM_Mid', 'Dedicated_Sram_384KB'),
}
WEIGHTED = ('CONV_2D', 'DEPTHWISE_CONV_2D', 'FULLY_CONNECTED', 'BATCH_MATMUL', 'TRANSPOSE_CONV')


class EthosU(Npu):
    """An Ethos-U NPU in a reference system that Vela, Arm's compiler, defines.

    Args:
        name: Vela's name of the NPU with its number of MACs per cycle, such as ``ethos-u55-128``.
        system: System configuration of Vela, which defines the clock and the speed of the memories.
        memory: Memory mode of Vela, which defines which memory holds weights and feature maps.
    """

    target = 'litert'
    package = 'ethos-u-vela'
    module = 'ethosu'

    def __init__(self, name: str, system: str, memory: str) -> None:
        self.name = name
        self.system = system
        self.memory = memory

    def place(self, path: Path) -> Placement:
        """Compile a ``.tflite`` file with Vela, see ``Npu.place``. Vela estimates latency, cycles and memory."""
        with tempfile.TemporaryDirectory() as folder:
            command = [str(compilers()), '-I', '-m', 'ethosu.vela', '--accelerator-config', self.name]
            command += ['--config', 'Arm/vela.ini', '--system-config', self.system, '--memory-mode', self.memory]
            command += ['--verbose-performance', '--output-dir', folder, str(path.absolute())]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)  # noqa: S603
            summary = Path(folder, f'{path.stem}_summary_{self.system}.csv')
            layers = Path(folder, f'{path.stem}_per-layer.csv')
            if done.returncode or not summary.is_file() or not layers.is_file():
                text = (done.stderr.strip() or done.stdout.strip() or 'no reason given').splitlines()
                raise UserError(f'{path.name} is not compiled for {self.name}: {text[-1][:300]}')
            with summary.open() as file:
                estimate = next(csv.DictReader(file))
            with layers.open() as file:
                names_on_cpu = {row['Name'] for row in csv.DictReader(file) if row['Target'] == 'CPU'}
        operators = _operators(path)
        areas = ('dram', 'on_chip_flash', 'off_chip_flash')
        return placement(
            operators,
            WEIGHTED,
            [operator.outputs[0] in names_on_cpu for operator in operators],
            milliseconds=1000 * float(estimate['inference_time']),
            cycles=round(float(estimate['cycles_total'])),
            sram=float(estimate['sram_memory_used']),
            memory=sum(float(estimate[f'{area}_memory_used']) for area in areas),
        )


def _operators(path: Path) -> list[Operator]:
    """Read the operators of a ``.tflite`` file."""
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model(str(path))
    graph = model.subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    return [
        Operator(
            flatbuffer_utils.opcode_to_name(model, one.opcodeIndex),
            names[one.outputs[0]],
            tuple(names[i] for i in one.inputs if i >= 0),
            tuple(names[i] for i in one.outputs),
        )
        for one in graph.operators
    ]


ALL = [
    EthosU(f'{family}-{size}', system, memory) for family, (sizes, system, memory) in FAMILIES.items() for size in sizes
]
