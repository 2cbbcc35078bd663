"""Transfer protocols: which nets are trained with which heads, from which weights, with which seeds.

A protocol is a Python file of plain values, like a config. The shipped ones are in ``configs/transfer/``. Imports
nothing heavy.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.config.index import CONFIGS, near_names
from mnv4_mm.config.options import check_input_size
from mnv4_mm.config.rules import check_backbone_name
from mnv4_mm.config.source import check_config_file, read_source
from mnv4_mm.errors import UserError

STARTS = ('random', 'imagenet')
# Control -> its change of the run, and the score that is expected.
CONTROLS = {
    'shuffled': 'trained on random labels: no better than a model that ignores the image',
    'twin': 'the same net under another name, with other seeds: the same score',
    'zeroed': 'the deepest feature map set to zero: a lower score',
    'distilled': 'the same net trained with a teacher: a higher score',
}
PUBLISHED = ('name', 'value', 'protocol', 'source')  # keys of a published result
TWIN_SEEDS = 100  # added to the seeds of the control `twin`


@dataclass(frozen=True, kw_only=True)
class Head:
    """A detector or segmenter that a protocol trains on each backbone: its config and the length of its training.

    Exactly one of ``epochs`` and ``iters`` must be given, depending on whether the config trains by epochs or by
    iterations.

    Attributes:
        config: Name or path of the config.
        epochs: Number of training epochs; None for a config that trains by iterations.
        iters: Number of training iterations; None for a config that trains by epochs.
        input_size: Height and width in pixels of the input of a detector; None for the size of the config.
        size: Height and width in pixels of the input of the exported file; None for the size of the config's test
            pipeline.
        cfg_options: Values that replace values of the config, by dotted key such as ``train_dataloader.num_workers``.
        minutes: CPU minutes of a run with the first net of the protocol, measured or estimated, for ``--plan``; None if
            unknown.
    """

    config: str
    epochs: int | None = None
    iters: int | None = None
    input_size: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    cfg_options: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher of the runs with the control ``distilled``, its students.

    The teacher is trained only once, with the first seed of the protocol, and serves the students of all seeds. Its
    training has the same config, data and length as that of its students.

    Attributes:
        net: Backbone of the teacher.
        start: Weights that this backbone starts from, one of ``STARTS``.
        cfg_options: Values that replace values of the config for the students only, by dotted key such as
            ``distillation.weight``.
    """

    net: str
    start: str = 'random'
    cfg_options: Mapping[str, Any] = field(default_factory=dict)


class Run(NamedTuple):
    """One training of a protocol.

    Attributes:
        head: Key of ``Protocol.heads``.
        net: Backbone, ``mnv4_<arch>`` or ``timm:<name>``.
        start: One of ``STARTS``.
        control: One of ``CONTROLS``; empty for a run that is not a control.
        seed: Seed of the initialisation, of the order and augmentation of the data, and of shuffled labels.
    """

    head: str
    net: str
    start: str
    control: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run, made of all its fields and valid as a file name."""
        parts = (self.head, self.net.replace(':', '_'), self.start, self.control, f'seed{self.seed}')
        return '-'.join(re.sub(r'[^\w.]', '_', part) for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A transfer protocol.

    Attributes:
        path: File of the protocol.
        title: Name of the data set for tables.
        heads: Heads by name.
        nets: Backbones, ``mnv4_<arch>`` or ``timm:<name>``.
        starts: Weights that backbones start from, of ``STARTS``.
        seeds: Seeds with which each combination of head, net and start is trained.
        imagenet_nets: Those of ``nets`` that are trained with the start ``imagenet``; empty for all.
        controls: Controls to run, of ``CONTROLS``. Each is run with every seed, but only with the first head, the first
            net and the first start.
        teacher: Teacher of the control ``distilled``; None if ``distilled`` is not among the controls.
        train: Splits of the data to train on.
        test: Splits to evaluate on.
        evaluations: Least number of evaluations during the training of a run, from which a curve of the score is
            drawn; 0 for none. The last checkpoint counts all the same.
        block: Number of test images, successive by name, that the bootstrap draws together, see
            ``bootstrap.draw_samples``: more than one for the frames of a video, which resemble each other.
        needs_data: True if ``--data`` must name a folder; False if the configs name the data.
        costs: Minutes of a run with a net, divided by those with the first net; 1 for nets that are not listed.
        published: Published results to list below the table, each a ``dict(name=, value=, protocol=, source=)``.
    """

    path: Path
    title: str
    heads: Mapping[str, Head]
    nets: Sequence[str]
    starts: Sequence[str] = ('random',)
    seeds: Sequence[int] = (0, 1, 2)
    imagenet_nets: Sequence[str] = ()
    controls: Sequence[str] = ()
    teacher: Teacher | None = None
    train: Sequence[str] = ('train',)
    test: Sequence[str] = ('val',)
    evaluations: int = 0
    block: int = 1
    needs_data: bool = True
    costs: Mapping[str, float] = field(default_factory=dict)
    published: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """Name of the protocol: the name of its file without suffix."""
        return self.path.stem

    def runs(self) -> list[Run]:
        """Return all runs of the protocol, including its controls.

        For each seed there is a run for each combination of head, net and start, followed by a run for each control.
        Nets that are not among ``imagenet_nets`` have no run with the start ``imagenet``. The control ``twin`` has the
        seed plus ``TWIN_SEEDS``.

        Returns:
            The runs, seed by seed, so that every net has a score before a second seed is trained.
        """
        runs: list[Run] = []
        first = next(iter(self.heads)), self.nets[0], self.starts[0]
        for seed in self.seeds:
            runs += [
                Run(head, net, start, '', seed)
                for head in self.heads
                for net in self.nets
                for start in self.starts
                if start != 'imagenet' or not self.imagenet_nets or net in self.imagenet_nets
            ]
            runs += [Run(*first, name, seed + TWIN_SEEDS * (name == 'twin')) for name in self.controls]
        return runs


def protocol_index() -> dict[str, Path]:
    """Return the names and files of the shipped protocols."""
    return {path.stem: path for path in sorted((CONFIGS / 'transfer').glob('*.py'))}


def read_protocol(name: str | Path) -> Protocol:
    """Read a protocol.

    Args:
        name: Name of a shipped protocol, or path of a file.

    Raises:
        UserError: There is no such protocol, or a value is missing, unknown or not allowed.
    """
    path = Path(name)
    if not path.is_file():
        index = protocol_index()
        if str(name) not in index:
            raise UserError(f'no protocol {name}: neither a file nor a shipped one{near_names(str(name), index)}')
        path = index[str(name)]
    if path.suffix != '.py':
        raise UserError(f'{path} is not a protocol: expected a .py file like those of configs/transfer')
    content = read_source(path)
    if content is None:
        raise UserError(f'{path} is not a protocol: it must consist of plain values')
    allowed = {item.name for item in fields(Protocol)} - {'path'}
    for key in content:
        if key not in allowed:
            hint = '; give minutes in each head' if key == 'minutes' else near_names(key, allowed)
            raise UserError(f'{path}: {key!r} is not part of a protocol{hint}')
    for key in ('title', 'heads', 'nets'):
        if not content.get(key):
            raise UserError(f'{path} is not a protocol: it has no {key}')
    try:
        heads = {key: _head(value) for key, value in content.pop('heads').items()}
        if content.get('teacher'):
            content['teacher'] = Teacher(**content['teacher'])
        protocol = Protocol(path=path, heads=heads, **content)
        _check(protocol)
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f'{path} is not a valid protocol: {error}') from error
    return protocol


def _head(value: Mapping[str, Any]) -> Head:
    head = Head(**value)
    check_config_file(head.config)
    if (head.epochs is None) == (head.iters is None):
        found = 'neither' if head.epochs is None else 'both'
        raise ValueError(f'a head needs either epochs or iters; that of {head.config} has {found}')
    for name, length in (('epochs', head.epochs), ('iters', head.iters)):
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError(f'{name} must be a positive integer, got {length!r}')
    if head.minutes is not None and not _is_positive(head.minutes):
        raise ValueError(f'minutes must be a positive number, got {head.minutes!r}')
    for key, size in (('input_size', head.input_size), ('size', head.size)):
        if size is not None:
            if not isinstance(size, list | tuple) or len(size) != 2:
                raise ValueError(f'{key} of a head must be height and width, got {size!r}')
            check_input_size(size)
    return head


def _check(protocol: Protocol) -> None:
    for name, kind, expected in (('costs', Mapping, 'a dict'), ('published', (list, tuple), 'a list')):
        if not isinstance(getattr(protocol, name), kind):
            raise ValueError(f'{name} must be {expected}, got {getattr(protocol, name)!r}')
    teachers = [protocol.teacher.net] if protocol.teacher else []
    for net in (*protocol.nets, *protocol.imagenet_nets, *teachers, *protocol.costs):
        check_backbone_name(net)
    if ('distilled' in protocol.controls) != bool(protocol.teacher):
        raise ValueError("the control 'distilled' needs a teacher, and a teacher the control")
    starts = (*protocol.starts, *([protocol.teacher.start] if protocol.teacher else []))
    for names, choices in ((starts, STARTS), (protocol.controls, tuple(CONTROLS))):
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise ValueError(f'{unknown[0]!r} is not one of {", ".join(choices)}')
    if 'zeroed' in protocol.controls and protocol.starts[0] != 'random':
        raise ValueError("the control 'zeroed' has random weights, so the first of starts must be 'random'")
    both = [name for name in protocol.train if name in protocol.test]
    if both:
        raise ValueError(f'the split {both[0]!r} is in both train and test')
    if not protocol.seeds or not all(type(seed) is int and 0 <= seed < TWIN_SEEDS for seed in protocol.seeds):
        raise ValueError(f'seeds must be integers from 0 to {TWIN_SEEDS - 1}, got {protocol.seeds!r}')
    if type(protocol.evaluations) is not int or protocol.evaluations < 0:
        raise ValueError(f'evaluations must be a number of evaluations, got {protocol.evaluations!r}')
    if type(protocol.block) is not int or protocol.block < 1:
        raise ValueError(f'block must be a number of images, at least 1; got {protocol.block!r}')
    if not all(map(_is_positive, protocol.costs.values())):
        raise ValueError(f'costs must be positive numbers, got {protocol.costs!r}')
    for result in protocol.published:
        missing = [key for key in PUBLISHED if not isinstance(result, Mapping) or key not in result]
        if missing:
            raise ValueError(f'a published result needs {", ".join(PUBLISHED)}; {result!r} has no {missing[0]}')
    if len(set(protocol.runs())) < len(protocol.runs()):
        raise ValueError('a net, a start, a seed or a control is listed twice')


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def select(
    runs: Sequence[Run],
    *,
    nets: Sequence[str] = (),
    heads: Sequence[str] = (),
    starts: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Run]:
    """Select the runs whose net, head, start and seed are all among the given ones.

    Controls are selected in the same way: with their head, net, start and seed.

    Args:
        runs: Runs of a protocol.
        nets: Nets to select; empty for all.
        heads: Heads to select; empty for all.
        starts: Starts to select; empty for all.
        seeds: Seeds to select, as listed in the protocol; empty for all. A run of the control ``twin``, whose own seed
            is larger by ``TWIN_SEEDS``, is selected with the seed of the protocol.

    Returns:
        The selected runs, in the order of ``runs``.

    Raises:
        UserError: No run has a given net, head, start or seed.
    """
    for flag, chosen, values in (
        ('--nets', nets, {run.net for run in runs}),
        ('--heads', heads, {run.head for run in runs}),
        ('--starts', starts, {run.start for run in runs}),
        ('--seeds', seeds, {_listed_seed(run) for run in runs}),
    ):
        for value in chosen:
            if value not in values:
                raise UserError(f'{flag}: {value} is not in this protocol{near_names(str(value), map(str, values))}')
    return [
        run
        for run in runs
        if (not nets or run.net in nets)
        and (not heads or run.head in heads)
        and (not starts or run.start in starts)
        and (not seeds or _listed_seed(run) in seeds)
    ]


def _listed_seed(run: Run) -> int:
    """Return the seed as listed in the protocol: the runs of a twin have seeds shifted by ``TWIN_SEEDS``."""
    return run.seed - TWIN_SEEDS if run.control == 'twin' else run.seed
