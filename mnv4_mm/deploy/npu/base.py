"""The interface of the compilers for NPUs, and the placement of the operators of a file on NPU and CPU."""

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
    """An operator of an exported file.

    Attributes:
        kind: Kind of operator in the format of the file, such as ``CONV_2D`` (LiteRT) or ``Conv`` (ONNX).
        name: Name for messages: that of the layer where the file has it, otherwise that of the operator in the file.
        inputs: Names of the tensors that the operator reads.
        outputs: Names of the tensors that the operator writes.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.name} ({self.kind})'


@dataclasses.dataclass(frozen=True)
class Placement:
    """Placement of the operators of a file on the NPU and on the CPU, and what the compiler estimates.

    The *net* is the part of the file from the first to the last convolutions and matrix products: backbone, neck and
    head. Estimates are None if the compiler makes none.

    Attributes:
        operators: Number of operators in the file. ``QuantizeLinear`` and ``DequantizeLinear`` of ONNX do not count.
        on_npu: Number of operators of the file that run on the NPU.
        net: Number of operators of the net.
        net_on_npu: Number of operators of the net that run on the NPU.
        fallback: Operators of the net that run on the CPU, each as ``<name> (<kind>)``, see ``Operator``.
        around: Number of operators before and after the net that run on the CPU, by kind.
        milliseconds: Estimated latency in ms of the part on the NPU.
        cycles: Estimated cycles of the NPU.
        sram: Estimated peak use of SRAM in KiB.
        memory: Estimated use of DRAM and flash in KiB, by weights, other constants and feature maps.
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
        """Describe in one line the estimated cycles and memory, if there are any, and what runs on the CPU."""
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
    """An NPU and its compiler. The compiler runs without the NPU.

    Attributes:
        name: Name of the NPU in ``--npu``.
        target: Name of the target (``TARGETS``) whose int8 files the compiler takes.
        package: Package of the compiler, in the environment of ``make npu``.
        module: Python module of this package.
    """

    name: str
    target: str
    package: str
    module: str

    def takes(self, meta: Meta) -> bool:
        """Return True if the compiler takes a file with this metadata: an int8 file of ``target``."""
        return meta.target == self.target and meta.precision == 'int8'

    def absent(self) -> str | None:
        """Return a message that says how to install the compiler; None if it is installed."""
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
        """Compile a file to find out which of its operators run on the NPU. The compiled file is not kept.

        Args:
            path: An exported file whose metadata ``takes`` accepts.

        Returns:
            The placement of the operators, with the estimates of the compiler.

        Raises:
            UserError: The compiler refuses the file.
            subprocess.TimeoutExpired: The compiler takes longer than ``TIMEOUT`` seconds.
        """


def compilers() -> Path:
    """Return the path of the Python interpreter of the environment with the compilers. The file may not exist.

    The path is the value of the environment variable ``MNV4_NPU_PYTHON`` or, if this variable is not set, that of the
    interpreter in ``.venv-npu``, see ``python_of``.
    """
    return python_of(VARIABLE, FOLDER)


def placement(
    operators: Sequence[Operator], kinds_with_weights: Sequence[str], on_cpu: Sequence[bool], **estimates: Any
) -> Placement:
    """Count the operators on the NPU and on the CPU, in the whole file and in the net.

    Args:
        operators: The operators of a file, in the order in which they run.
        kinds_with_weights: Kinds of convolutions and matrix products, with which the net begins and ends.
        on_cpu: For each of ``operators``, True if it runs on the CPU and False if it runs on the NPU.
        **estimates: Estimates of the compiler, by attribute of ``Placement``, such as ``cycles``.
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
