"""The latency table of a search space on a device: its file, and what it predicts for a net. Imports nothing heavy."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.models.arch import ROWS, PlacedRow, placed_rows
from mnv4_mm.models.space import SPACES, Genes
from mnv4_mm.search.blocks import all_blocks, input_size, layers_of, output_size
from mnv4_mm.search.roofline import ROOFLINE, roofline_features, roofline_ms

FORMAT = 2
FILES_MARKER = '.mnv4_search_profile'  # name of a file in folders that a profile has made and may delete


class Subject(NamedTuple):
    """Search space, input sizes and model that a latency table was measured for.

    Exported nets with the same genes (the choices that define a net of the space) and the same subject have the same
    latency on a device.

    Attributes:
        space: Name of the search space.
        sizes: Height and width of the input in pixels, for each of the space's ``scales``.
        model: Digest of the config of the detector or segmenter, see ``config.supernet.model_digest``.
    """

    space: str
    sizes: tuple[tuple[int, int], ...]
    model: str

    def size_of(self, genes: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the input of a net in pixels."""
        return self.sizes[SPACES[self.space].scale_number(genes)]


class BlockTime(NamedTuple):
    """Latency of a block in a net of the largest input.

    Attributes:
        block: The block.
        ms: Latency in ms.
        measured: True if it has been measured; False if it is predicted from the MACs and bytes of its layers.
    """

    block: PlacedRow
    ms: float
    measured: bool


class NetTime(NamedTuple):
    """Latency of an exported net.

    Attributes:
        genes: The net.
        ms: Measured latency in ms.
        predicted: Predicted latency in ms.
    """

    genes: Genes
    ms: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative error of the prediction, not negative."""
        return abs(self.predicted / self.ms - 1)


class LatencyTable(NamedTuple):
    """Latencies of blocks and of whole nets on a device, and the coefficients that predict those of other nets.

    Attributes:
        subject: What was measured.
        runtime: Name of the runtime, a key of ``deploy.targets.TARGETS``.
        threads: Number of threads.
        machine: Description of the device and of the versions.
        date: Date of the measurement, ISO 8601.
        roofline: Coefficients that predict a block from the MACs and bytes of its layers, see ``predict.fit_roofline``.
        coefficients: Coefficients of ``BlockTimes.features``, and ``constant``: see ``predicted``.
        blocks: All blocks of the space.
        nets: Nets that the coefficients were fitted to.
        checked: Nets that were not used for the fit.
    """

    subject: Subject
    runtime: str
    threads: int
    machine: dict[str, Any]
    date: str
    roofline: dict[str, float]
    coefficients: dict[str, float]
    blocks: tuple[BlockTime, ...]
    nets: tuple[NetTime, ...]
    checked: tuple[NetTime, ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield lines that describe what was measured and the error of the predictions."""
        measured = sum(one.measured for one in self.blocks)
        threads = f'{self.threads} thread{"s" if self.threads > 1 else ""}'
        device = self.machine.get('cpu') or self.machine.get('device')
        count = f'{measured} of {len(self.blocks)} blocks and {len(self.nets)} nets'
        yield f'{self.runtime}, {threads}, on {device}: {count} measured'
        if self.checked:
            median, p95 = errors(self.checked)
            yield (
                f'error of the prediction on {len(self.checked)} other nets: median {median:.1%}, 95th percentile '
                f'{p95:.1%}'
            )
        else:
            yield '--check N measures the error of the prediction on N other nets'


class Predictor:
    """Predicts the latency of nets.

    Args:
        table: A latency table.
        subject: Space, input size and model of the nets to predict.
        backbone: Config of the backbone, see ``blocks.blocks_of``.

    Raises:
        UserError: The table has another subject, or lacks a block of the space.
    """

    def __init__(self, table: LatencyTable, subject: Subject, backbone: Mapping[str, Any]) -> None:
        found, expected = table.subject, subject
        if found.space != expected.space:
            raise UserError(
                f'--latency: the table is of the search space {found.space!r}, the supernet has {expected.space!r}'
            )
        if found.sizes != expected.sizes:
            sizes = [', '.join(f'{size[1]}x{size[0]}' for size in one.sizes) for one in (found, expected)]
            raise UserError(f'--latency: the table is of images of {sizes[0]} pixels, the supernet takes {sizes[1]}')
        if found.model != expected.model:
            raise UserError('--latency: the table is of a supernet with another head, neck or number of classes')
        self._coefficients = table.coefficients
        # Among the measured nets is the smallest of the space. What is far below it is an error of the regression.
        self._least = min(net.ms for net in table.nets) / 2
        times = {time.block: time.ms for time in table.blocks}
        missing = set(all_blocks(SPACES[subject.space], backbone)) - times.keys()
        is_complete = table.coefficients.keys() == {'constant', *feature_names(backbone)}
        if missing or not is_complete or table.roofline.keys() != set(ROOFLINE):
            raise UserError('--latency: the table lacks blocks or coefficients of this search space: make it anew')
        self._times = BlockTimes(subject, backbone, times, table.roofline)

    def __call__(self, genes: Sequence[int]) -> float:
        """Return the latency of a net in ms."""
        return max(self._least, predicted(self._coefficients, self._times.features(genes)))


def feature_names(backbone: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the features of a net, see ``BlockTimes.features``."""
    maps = (f'C{i + 2} megabytes' for i in backbone.get('out_indices', (1, 2, 3)))
    return ('blocks', 'count', 'megabytes', 'megapixels', *maps)


class BlockTimes:
    """Latencies of the blocks of a space, and the features of nets that follow from them.

    Args:
        subject: What the latencies are of.
        backbone: See ``blocks.blocks_of``.
        times: Latency in ms of each block in a net of the largest input.
        roofline: Coefficients that predict a block from its MACs and bytes, see ``predict.fit_roofline``.
    """

    def __init__(
        self,
        subject: Subject,
        backbone: Mapping[str, Any],
        times: Mapping[PlacedRow, float],
        roofline: Mapping[str, float],
    ) -> None:
        self._space, self._subject, self._backbone = SPACES[subject.space], subject, backbone
        self._times = {subject.sizes[-1]: dict(times)}
        self._roofline = roofline

    def _at_size(self, size: tuple[int, int]) -> Mapping[PlacedRow, float]:
        """Return the latencies of all blocks in nets of another input.

        Blocks are measured for the largest input only. Their latency is multiplied by the one that the roofline
        predicts for this input, and divided by the one that it predicts for the largest.

        Args:
            size: Height and width of the input in pixels.
        """
        largest = self._subject.sizes[-1]
        if size not in self._times:
            self._times[size] = {}
            for block, ms in self._times[largest].items():
                whole = self._ms(block, largest)
                self._times[size][block] = ms * self._ms(block, size) / whole if whole else ms
        return self._times[size]

    def _ms(self, block: PlacedRow, size: tuple[int, int]) -> float:
        return roofline_ms(self._roofline, roofline_features(layers_of(block, size)))

    def features(self, genes: Sequence[int]) -> dict[str, float]:
        """Return the features from which the latency of a net is predicted.

        Args:
            genes: The net.

        Returns:
            The features by name. ``blocks`` is the sum of the latencies of its blocks in ms, ``count`` their number,
            and ``megabytes`` the size of their inputs and outputs. The last two correct for the cost of measuring a
            block alone: one call more, and one conversion more of its feature maps, than within a net. ``megapixels``
            is the size of the image, and ``C3 megabytes`` and so on are those of the maps that the neck gets.
        """
        subnet, size = self._space.subnet(genes), self._subject.size_of(genes)
        times = self._at_size(size)
        indices = self._backbone.get('out_indices', (1, 2, 3))
        stages = placed_rows(subnet.arch, self._backbone.get('output_stride', 32))[: indices[-1] + 1]
        blocks = [block for stage in stages for block in stage]
        outputs = [block.row.out * math.prod(output_size(block, size)) for block in blocks]
        inputs = [block.channels * math.prod(input_size(block, size)) for block in blocks]
        features = [sum(times[block] for block in blocks), len(blocks), 4e-6 * (sum(inputs) + sum(outputs))]
        last = [stages[i][-1] for i in indices]
        maps = [4e-6 * block.row.out * math.prod(output_size(block, size)) for block in last]
        values = [*features, 1e-6 * math.prod(size), *maps]
        return dict(zip(feature_names(self._backbone), values, strict=True))


def predicted(coefficients: Mapping[str, float], features: Mapping[str, float]) -> float:
    """Return the constant plus the sum of coefficients times features, in ms."""
    return coefficients['constant'] + sum(coefficients[name] * value for name, value in features.items())


def errors(nets: Sequence[NetTime]) -> tuple[float, float]:
    """Return median and 95th percentile of the relative errors of predictions."""
    median, p95 = np.percentile([net.error for net in nets], [50, 95])
    return float(median), float(p95)


def write_table(table: LatencyTable, path: Path) -> None:
    """Write a table as JSON.

    Raises:
        UserError: The file cannot be written.
    """
    content: dict[str, Any] = dict(format=FORMAT) | table._asdict() | table.subject._asdict()
    del content['subject']
    content['blocks'] = [block_content(one.block) | dict(ms=one.ms, measured=one.measured) for one in table.blocks]
    content |= dict(nets=[net._asdict() for net in table.nets], checked=[net._asdict() for net in table.checked])
    write_whole(path, json.dumps(content, indent=1))


def read_table(path: str | Path) -> LatencyTable:
    """Read what ``write_table`` has written.

    Raises:
        UserError: The file is missing, or is not a latency table.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'--latency {path}: no such file; `mnv4 search profile` writes it')
    try:
        content = json.loads(path.read_bytes())
        if content.pop('format') != FORMAT:
            raise ValueError('another format')
        sizes = tuple((int(_positive(height)), int(_positive(width))) for height, width in content.pop('sizes'))
        subject = Subject(_text(content.pop('space')), sizes, _text(content.pop('model')))
        if content.keys() != set(LatencyTable._fields) - {'subject'}:
            raise ValueError('other keys')
        return LatencyTable(
            subject,
            _text(content['runtime']),
            int(_positive(content['threads'])),
            dict(content['machine']),
            _text(content['date']),
            _numbers(content['roofline']),
            _numbers(content['coefficients']),
            tuple(BlockTime(_block(one), _finite(one['ms']), one['measured'] is True) for one in content['blocks']),
            _nets(content['nets']),
            _nets(content['checked']),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f'--latency {path} is not a latency table, as `mnv4 search profile` writes it') from error


def block_content(block: PlacedRow) -> dict[str, Any]:
    """Return a block as plain values for JSON."""
    return {**block._asdict(), 'row': [type(block.row).__name__, *block.row]}


def _block(content: Mapping[str, Any]) -> PlacedRow:
    name, *values = content['row']
    row = ROWS[name](*map(int, values))
    return PlacedRow(row, *(int(content[key]) for key in ('channels', 'stride', 'dilation')))


def check_files_folder(out: Path) -> Path:
    """Return the folder in which a profile keeps exported files until it has written its table.

    Args:
        out: The table. The folder is next to it and has the suffix ``.files``.

    Raises:
        UserError: There is such a folder or file that no profile has made. A profile would delete it.
    """
    folder = out.with_suffix('.files')
    is_empty = folder.is_dir() and not any(folder.iterdir())  # as an interrupted profile may leave it
    if folder.exists() and not is_empty and not (folder / FILES_MARKER).is_file():
        raise UserError(f'{folder} would be deleted, and was not made by `mnv4 search profile`: name another --out')
    return folder


def _nets(content: Any) -> tuple[NetTime, ...]:
    return tuple(
        NetTime(tuple(map(int, one['genes'])), _positive(one['ms']), _finite(one['predicted'])) for one in content
    )


def _numbers(content: Any) -> dict[str, float]:
    return {_text(name): _finite(value) for name, value in content.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f'{value!r} is not text')
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f'{value!r} is not a number')
    return float(value)


def _positive(value: Any) -> float:
    if not _finite(value) > 0:
        raise ValueError(f'{value!r} is not above 0')
    return float(value)
