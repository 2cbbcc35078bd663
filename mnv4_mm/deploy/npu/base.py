"""The interface of a compiler for an NPU, and what it says about an exported file."""

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.deploy.environments import python_of
from mnv4_mm.runtime.meta import Meta

VARIABLE = 'MNV4_NPU_PYTHON'  # the python of the environment with the compilers
FOLDER = '.venv-npu'  # the environment, in the current folder or in the checkout
TIMEOUT = 1800  # seconds that a compilation may take


class Operator(NamedTuple):
    """An operator of a file.

    Attributes:
        kind: Its kind in the file's format, such as ``CONV_2D``.
        name: The layer that it belongs to, as far as the file names layers; otherwise its name in the file.
        inputs: Names of the tensors that it reads.
        outputs: Names of the tensors that it writes.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.name} ({self.kind})'


@dataclasses.dataclass(frozen=True)
class Placement:
    """Operators of a file on an NPU and on the CPU, and estimates of the compiler; None: not estimated.

    Attributes:
        operators: Number of operators in the file, without those that quantise and dequantise in ONNX.
        on_npu: Number of them that run on the NPU.
        net: Number of operators of the net: from the first one with weights to the last ones.
        net_on_npu: Number of them that run on the NPU.
        fallback: Operators of the net that run on the CPU, with the names of their layers.
        around: Number of operators before and after the net that run on the CPU, by kind.
        milliseconds: Estimated latency of the part on the NPU.
        cycles: Estimated cycles of the NPU.
        sram: Peak use of SRAM, in KiB.
        memory: Size of weights and other constants outside of SRAM, and of feature maps in DRAM, in KiB.
    """

    operators: int
    on_npu: int
    net: int
    net_on_npu: int
    fallback: tuple[str, ...]
    around: dict[str, int]
    milliseconds: float | None = None
    cycles: int | None = None
    sram: float | None = None
    memory: float | None = None

    def __str__(self) -> str:
        share = f'{_percent(self.net_on_npu, self.net)} of the net, {_percent(self.on_npu, self.operators)} of all'
        return share if self.milliseconds is None else f'{share}, {self.milliseconds:.2f} ms'

    def details(self) -> str:
        """Describe in one line what the NPU needs, and what runs on the CPU instead."""
        parts = []
        if self.cycles is not None:
            parts.append(f'{self.cycles:,} cycles, {self.sram:.0f} KiB of SRAM, {self.memory:.0f} KiB of other memory')
        parts.append(
            f'of the net on the CPU: {", ".join(self.fallback)}'
            if self.fallback
            else f'all {self.net} operators of the net on the NPU'
        )
        around = ', '.join(f'{count} {kind}' for kind, count in sorted(self.around.items()))
        parts.append(f'around the net on the CPU: {around or "none"}')
        return '; '.join(parts)


class Npu(ABC):
    """An NPU with its compiler, which needs no device.

    Attributes:
        name: As in ``--npu``.
        target: Name of the target whose int8 files it compiles.
        package: Package of the compiler, in the environment of ``make npu``.
        module: Module that this package installs.
    """

    name: str
    target: str
    package: str
    module: str

    def takes(self, meta: Meta) -> bool:
        """Return True if its compiler is for files like this one."""
        return meta.target == self.target and meta.precision == 'int8'

    def absent(self) -> str | None:
        """Return that the compiler is not installed, and the command that installs it; None if it is."""
        python = compilers()
        found = python.is_file() and any((python.parents[1] / 'lib').glob(f'python*/site-packages/{self.module}'))
        if found:
            return None
        return (
            f'{self.name} is compiled by {self.package} in an environment of its own, and it is not in '
            f'{python.parents[1]}: `make npu` in a checkout, or set {VARIABLE} to the python of an environment with it'
        )

    @abstractmethod
    def place(self, path: Path) -> Placement:
        """Compile a file.

        Args:
            path: An exported file that ``takes`` accepts.

        Raises:
            UserError: The compiler refuses the file.
        """


def compilers() -> Path:
    """Return the Python of the environment with the compilers: ``MNV4_NPU_PYTHON`` or the one in ``.venv-npu``."""
    return python_of(VARIABLE, FOLDER)


def placement(
    operators: Sequence[Operator], kinds_with_weights: Sequence[str], on_cpu: Sequence[bool], **estimates: Any
) -> Placement:
    """Count operators.

    Args:
        operators: The operators of a file, in the order in which they run.
        kinds_with_weights: Kinds of convolutions and matrix products: the net begins and ends with them.
        on_cpu: True for each operator that runs on the CPU.
        estimates: The other attributes of a ``Placement``.
    """
    behind: set[str] = set()  # tensors that depend on an operator with weights
    before: set[str] = set()  # tensors that an operator with weights depends on
    for operator in operators:
        if operator.kind in kinds_with_weights or behind.intersection(operator.inputs):
            behind.update(operator.outputs)
    for operator in reversed(operators):
        if operator.kind in kinds_with_weights or before.intersection(operator.outputs):
            before.update(operator.inputs)
    in_net = [
        operator.kind in kinds_with_weights
        or bool(behind.intersection(operator.outputs) and before.intersection(operator.outputs))
        for operator in operators
    ]
    fallback = tuple(
        str(operator) for operator, inside, cpu in zip(operators, in_net, on_cpu, strict=True) if inside and cpu
    )
    around = Counter(
        operator.kind for operator, inside, cpu in zip(operators, in_net, on_cpu, strict=True) if cpu and not inside
    )
    counts = dict(
        operators=len(operators),
        on_npu=len(operators) - sum(on_cpu),
        net=sum(in_net),
        net_on_npu=sum(in_net) - len(fallback),
    )
    return Placement(**counts, fallback=fallback, around=dict(around), **estimates)


def _percent(part: int, whole: int) -> str:
    # Never rounded up to 100 %.
    return f'{100 * part // whole if whole else 0} %'
