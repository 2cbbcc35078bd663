"""Search spaces: tables of choices for the rows of ``arch.py``, and the nets that they contain. Imports nothing heavy.

The largest net of a space has every layer that any net of the space has. So its weights are those of a supernet: each
other net takes a part of them, see ``models.supernet``. A net is written as its genes, one index for each variable.
The last one is that of the scale of its input.
"""

import functools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS, MQA, UIB, Arch, Conv, FusedIB, Row

Genes = tuple[int, ...]


class ConvChoices(NamedTuple):
    """Choices of a ``Conv`` row.

    Attributes:
        kernel: Kernel size.
        stride: Stride.
        out: Output channels to choose from, in ascending order; None for the width of the stage.
    """

    kernel: int
    stride: int
    out: tuple[int, ...] | None = None


class FusedIBChoices(NamedTuple):
    """Choices of a ``FusedIB`` row, whose output channels are the width of the stage.

    Attributes:
        kernel: Kernel size.
        stride: Stride.
        expand: Expansions to choose from, in ascending order.
    """

    kernel: int
    stride: int
    expand: tuple[int, ...]


class UIBChoices(NamedTuple):
    """Choices of a ``UIB`` row, whose output channels are the width of the stage.

    The kernel sizes choose the form: ExtraDW, IB, ConvNext or FFN. A row of stride 2 is never an FFN. A row of stride 1
    may also be left out.

    Attributes:
        start_dw: Kernel sizes of the first depthwise convolution to choose from; 0 for none.
        middle_dw: Kernel sizes of the second depthwise convolution to choose from; 0 for none.
        stride: Stride.
        expand: Expansions to choose from, in ascending order.
    """

    start_dw: tuple[int, ...]
    middle_dw: tuple[int, ...]
    stride: int
    expand: tuple[int, ...]

    def kernels(self) -> tuple[tuple[int, int] | None, ...]:
        """Return the pairs of kernel sizes to choose from; None, first if there, leaves the row out."""
        pairs = [(start, middle) for start in self.start_dw for middle in self.middle_dw]
        return (None, *pairs) if self.stride == 1 else tuple(pair for pair in pairs if any(pair))


class MQAChoices(NamedTuple):
    """An ``MQA`` row, which may be left out. Its attributes are those of ``arch.MQA``."""

    heads: int
    key_dim: int
    kv_stride: int


RowChoices = ConvChoices | FusedIBChoices | UIBChoices | MQAChoices


class StageChoices(NamedTuple):
    """Choices of a stage.

    Attributes:
        width: Output channels of the stage to choose from: multiples of 8, in ascending order.
        rows: Choices of the rows. The first row has the stride of the stage.
    """

    width: tuple[int, ...]
    rows: tuple[RowChoices, ...]


class Variable(NamedTuple):
    """A variable of a space.

    Attributes:
        name: Name, such as ``C4.2.kernels``: stage, number of the row in the stage from 0, and what is chosen.
        values: Values to choose from. The first one gives the smallest net and the last one the largest.
    """

    name: str
    values: tuple


class Subnet(NamedTuple):
    """A net of a space.

    Attributes:
        arch: Its table.
        rows: For each stage, the numbers of the rows of the largest net that the net has, in ascending order.
        scale: Width and height of its input, relative to those of the largest net.
    """

    arch: Arch
    rows: tuple[tuple[int, ...], ...]
    scale: float


class Space(NamedTuple):
    """Choices of a whole net.

    Attributes:
        stem: Output channels of the stem.
        act: Name of the activation in mmcv.
        stages: Choices of the stages that end in C2, C3, C4 and C5.
        scales: Widths and heights of the input to choose from, at least two, relative to those of the config; 1 is the
            last one.
        head_conv: See ``arch.Arch``.
    """

    stem: int
    act: str
    stages: tuple[StageChoices, ...]
    scales: tuple[float, ...] = (0.6, 0.8, 1.0)
    head_conv: int | None = 960

    def variables(self) -> tuple[Variable, ...]:
        """Return the variables, in the order of the genes. A choice of one value is not a variable."""
        return _variables_of(self)[1]

    def _variables(self) -> Iterator[Variable]:
        for number, stage in enumerate(self.stages, 2):
            yield Variable(f'C{number}.width', stage.width)
            for i, row in enumerate(stage.rows):
                name = f'C{number}.{i}'
                if isinstance(row, ConvChoices) and row.out:
                    yield Variable(f'{name}.out', row.out)
                if isinstance(row, UIBChoices):
                    yield Variable(f'{name}.kernels', row.kernels())
                if isinstance(row, FusedIBChoices | UIBChoices):
                    yield Variable(f'{name}.expand', row.expand)
                if isinstance(row, MQAChoices):
                    yield Variable(f'{name}.attention', (False, True))
        yield Variable('scale', self.scales)

    def largest(self) -> Genes:
        """Return the genes of the net that has all layers, with the largest kernels, expansions and widths."""
        return tuple(len(variable.values) - 1 for variable in self.variables())

    def smallest(self) -> Genes:
        """Return the genes of the net without the rows that may be left out, and with the smallest other choices."""
        return self.canonical((0,) * len(self.variables()))

    def sample(self, generator: random.Random) -> Genes:
        """Return the genes of a random net.

        In each stage, each number of rows that are left out has the same probability, so that there are shallow nets
        and deep ones. Every other variable has each of its values with equal probability.
        """
        variables = self.variables()
        optional: dict[str, list[str]] = {}
        for variable in variables:
            if variable.values[0] is None:
                optional.setdefault(variable.name.partition('.')[0], []).append(variable.name)
        left_out = {
            name for names in optional.values() for name in generator.sample(names, generator.randint(0, len(names)))
        }
        genes = []
        for variable in variables:
            first = 1 if variable.values[0] is None else 0
            gene = generator.randrange(first, len(variable.values))
            genes.append(0 if variable.name in left_out else gene)
        return self.canonical(genes)

    def canonical(self, genes: Sequence[int]) -> Genes:
        """Return the genes with 0 for each expansion of a row that is left out, as it has no effect.

        Raises:
            UserError: The genes do not fit the space.
        """
        variables = self.variables()
        if len(genes) != len(variables) or not all(
            isinstance(gene, int) and 0 <= gene < len(variable.values)
            for gene, variable in zip(genes, variables, strict=True)
        ):
            ranges = ', '.join(f'{variable.name} below {len(variable.values)}' for variable in variables)
            raise UserError(f'genes must be {len(variables)} indices ({ranges}), got {list(genes)}')
        left_out = {
            variable.name.removesuffix('.kernels')
            for gene, variable in zip(genes, variables, strict=True)
            if variable.values[gene] is None
        }
        return tuple(
            0 if variable.name.endswith('.expand') and variable.name.removesuffix('.expand') in left_out else gene
            for gene, variable in zip(genes, variables, strict=True)
        )

    def scale_number(self, genes: Sequence[int]) -> int:
        """Return the index in ``scales`` of the input of a net.

        Raises:
            UserError: The genes do not fit the space.
        """
        return self.canonical(genes)[-1]

    def subnet(self, genes: Sequence[int]) -> Subnet:
        """Return the net with these genes.

        Raises:
            UserError: The genes do not fit the space.
        """
        chosen = {v.name: v.values[gene] for gene, v in zip(self.canonical(genes), self.variables(), strict=True)}
        chosen = {variable.name: variable.values[0] for variable in _variables_of(self)[0]} | chosen
        stages, numbers = [], []
        for number, stage in enumerate(self.stages, 2):
            width = chosen[f'C{number}.width']
            rows = [_row(row, f'C{number}.{i}', width, chosen) for i, row in enumerate(stage.rows)]
            stages.append(tuple(row for row in rows if row is not None))
            numbers.append(tuple(i for i, row in enumerate(rows) if row is not None))
        arch = Arch(self.stem, self.act, None, tuple(stages), self.head_conv)
        return Subnet(arch, tuple(numbers), chosen['scale'])

    def genes(self, arch: Arch) -> Genes:
        """Return the genes of a net with the largest input.

        Rows that the space may leave out are taken from the first on: the net has the first n of them.

        Raises:
            UserError: The net is not in the space.
        """
        values: dict[str, object] = {'scale': self.scales[-1]}
        for number, (stage, rows) in enumerate(zip(self.stages, arch.stages, strict=True), 2):
            values[f'C{number}.width'] = rows[-1].out
            left = list(rows)
            for i, choices in enumerate(stage.rows):
                name = f'C{number}.{i}'
                row = left[0] if left and _fits(choices, left[0]) else None
                if row is not None:
                    left.pop(0)
                if isinstance(choices, MQAChoices):
                    values[f'{name}.attention'] = row is not None
                elif isinstance(choices, UIBChoices):
                    values[f'{name}.kernels'] = (row.start_dw, row.middle_dw) if isinstance(row, UIB) else None
                if isinstance(row, UIB | FusedIB):
                    values[f'{name}.expand'] = row.expand
                if isinstance(choices, ConvChoices) and isinstance(row, Conv):
                    values[f'{name}.out'] = row.out
        try:
            genes = tuple(
                variable.values.index(values[variable.name]) if variable.name in values else 0
                for variable in self.variables()
            )
        except ValueError as error:
            raise UserError(f'this net is not in the search space: {error}') from error
        if self.subnet(genes).arch.stages != arch.stages:
            raise UserError('this net is not in the search space')
        return self.canonical(genes)


def at_scale(genes: Genes, number: int) -> Genes:
    """Return the genes of the same net with another input, of the scale with this number in ``Space.scales``."""
    return (*genes[:-1], number)


@functools.cache
def _variables_of(space: Space) -> tuple[tuple[Variable, ...], tuple[Variable, ...]]:
    """Return all choices of a space, and those of more than one value. A search asks for them with each net."""
    choices = tuple(space._variables())
    return choices, tuple(choice for choice in choices if len(choice.values) > 1)


def _row(choices: RowChoices, name: str, width: int, chosen: dict[str, object]) -> Row | None:
    match choices:
        case ConvChoices(kernel, stride, out):
            return Conv(kernel, stride, chosen[f'{name}.out'] if out else width)  # type: ignore[arg-type]
        case FusedIBChoices(kernel, stride, _):
            return FusedIB(kernel, stride, chosen[f'{name}.expand'], width)  # type: ignore[arg-type]
        case UIBChoices(_, _, stride, _):
            kernels: tuple[int, int] | None = chosen[f'{name}.kernels']  # type: ignore[assignment]
            return UIB(*kernels, stride, chosen[f'{name}.expand'], width) if kernels else None  # type: ignore[arg-type]
        case MQAChoices(heads, key_dim, kv_stride):
            return MQA(heads, key_dim, kv_stride, width) if chosen[f'{name}.attention'] else None
    raise TypeError(f'not a row of a search space: {choices!r}')


def _fits(choices: RowChoices, row: Row) -> bool:
    """Return True if a row of a table is of the kind of some choices."""
    kinds = {ConvChoices: Conv, FusedIBChoices: FusedIB, UIBChoices: UIB, MQAChoices: MQA}
    return isinstance(row, kinds[type(choices)])


KERNELS = (0, 3, 5)
# Contains MNv4-Conv-S. Attention may follow the fourth block of the last two stages.
SMALL = Space(
    stem=32,
    act='ReLU',
    stages=(
        StageChoices((24, 32), (ConvChoices(3, 2), ConvChoices(1, 1))),
        StageChoices((48, 64), (ConvChoices(3, 2, (64, 96)), ConvChoices(1, 1))),
        StageChoices(
            (64, 80, 96),
            (
                UIBChoices(KERNELS, (3, 5), 2, (2, 3, 4)),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 3,
                MQAChoices(4, 32, 2),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 2,
            ),
        ),
        StageChoices(
            (96, 112, 128),
            (
                UIBChoices(KERNELS, (3, 5), 2, (3, 4, 6)),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 3,
                MQAChoices(4, 32, 1),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 2,
            ),
        ),
    ),
)
# Contains MNv4-Conv-M. Attention may follow two of the blocks of each of the last two stages.
MEDIUM = Space(
    stem=32,
    act='ReLU',
    stages=(
        StageChoices((32, 48), (FusedIBChoices(3, 2, (2, 4)),)),
        StageChoices((64, 80), (UIBChoices(KERNELS, (3, 5), 2, (2, 4)), UIBChoices(KERNELS, KERNELS, 1, (2, 4)))),
        StageChoices(
            (112, 136, 160),
            (
                UIBChoices(KERNELS, (3, 5), 2, (4, 6)),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 3,
                MQAChoices(4, 64, 2),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 2,
                MQAChoices(4, 64, 2),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 2,
            ),
        ),
        StageChoices(
            (192, 224, 256),
            (
                UIBChoices(KERNELS, (3, 5), 2, (4, 6)),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 5,
                MQAChoices(4, 64, 1),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 2,
                MQAChoices(4, 64, 1),
                *[UIBChoices(KERNELS, KERNELS, 1, (2, 3, 4))] * 3,
            ),
        ),
    ),
)
SPACES: dict[str, Space] = {'small': SMALL, 'medium': MEDIUM}
PUBLISHED = {'small': 'conv_s', 'medium': 'conv_m'}  # the net of ARCHS that a space contains
MULTIPLES = (1.0, 0.875, 0.75)


def published_nets(name: str) -> dict[str, Genes]:
    """Return the published net of a space, and the same net with narrower layers or a smaller input.

    Args:
        name: A key of ``SPACES``.

    Returns:
        Genes by name, such as ``mnv4_conv_s``, ``mnv4_conv_s x 0.75`` and ``mnv4_conv_s, input x 0.8``. Of each width,
        the largest choice counts that is at most the multiple of the published one, or the smallest choice.
    """
    space, arch = SPACES[name], PUBLISHED[name]
    genes, variables = space.genes(ARCHS[arch]), space.variables()
    nets: dict[str, Genes] = {}
    for multiple in MULTIPLES:
        narrow = [
            max(i for i, width in enumerate(variable.values) if i == 0 or width <= multiple * variable.values[gene])
            if variable.name.endswith(('.width', '.out'))
            else gene
            for gene, variable in zip(genes, variables, strict=True)
        ]
        nets[f'mnv4_{arch}' + (f' x {multiple:g}' if multiple != 1 else '')] = space.canonical(narrow)
    for number, scale in reversed(list(enumerate(space.scales[:-1]))):
        nets[f'mnv4_{arch}, input x {scale:g}'] = at_scale(genes, number)
    return nets
