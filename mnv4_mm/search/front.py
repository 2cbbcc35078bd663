"""The Pareto front of nets by score and cost, and its file. Imports nothing heavy."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.pareto import pareto_front

GMACS, MS = UNITS = ('GMACs', 'ms')  # of a cost
DIGITS = 4  # of a cost, in a table and in the name of a file


class Scored(NamedTuple):
    """A net with its score and cost.

    Attributes:
        genes: The net, see ``models.space``.
        score: AP or mIoU in [0, 1] on the images that were held out.
        cost: Billions of multiply-accumulates of the backbone for one image, or predicted latency in ms.
    """

    genes: tuple[int, ...]
    score: float
    cost: float


class Front(NamedTuple):
    """The nets of a supernet with the best scores at their costs, and how they were found.

    Attributes:
        supernet: Checkpoint of the supernet.
        sha256: Its SHA-256.
        metric: Name of the metric of the scores.
        images: Number of images that were scored on.
        plan: What the search did, see ``run.Plan``.
        nets: The nets, by ascending cost and score; for ``tunas`` the one with the best reward.
        sizes: Height and width in pixels of the first scored image, for each of the space's ``scales``.
        unit: Unit of the costs, one of ``UNITS``.
        baselines: Name, score and cost of the published net of the space, and of the same net with narrower layers or a
            smaller input.
    """

    supernet: Path
    sha256: str
    metric: str
    images: int
    plan: dict[str, Any]
    nets: tuple[Scored, ...]
    sizes: tuple[tuple[int, int], ...]
    unit: str = GMACS
    baselines: tuple[tuple[str, Scored], ...] = ()

    def choose(self, limit: float) -> Scored:
        """Return the net with the best score within a limit of the cost.

        Costs count as ``lines`` shows them, rounded to ``DIGITS``.

        Raises:
            UserError: All nets cost more.
        """
        fitting = [net for net in self.nets if round(net.cost, DIGITS) <= limit]
        if not fitting:
            cheapest = min(net.cost for net in self.nets)
            raise UserError(f'--choose {limit:g}: the cheapest net of the front has {cheapest:.{DIGITS}f} {self.unit}')
        return max(fitting, key=lambda net: net.score)

    def find_supernet(self, front: Path) -> Path:
        """Return the checkpoint of the supernet.

        If it is not where it was during the search, it is looked for beside the file of the front and in the folder
        above, as all of them may have been copied to another machine.

        Args:
            front: File of the front.

        Raises:
            UserError: It is missing or has been replaced.
        """
        folder = front.resolve().parent
        candidates = [self.supernet, *(one / self.supernet.name for one in (folder, folder.parent))]
        found = [path for path in candidates if path.is_file()]
        for path in found:
            if file_digest(path).hexdigest() == self.sha256:
                return path
        if found:
            raise UserError(f'the supernet {found[0]} has been replaced: its SHA-256 is not that of this front')
        raise UserError(f'the supernet {self.supernet} of this front is missing; it may also be put beside {front}')

    def lines(self) -> Iterator[str]:
        """Yield the lines of a Markdown table, and one for each baseline."""
        yield f'| {self.unit} | {self.metric} | input |'
        yield '|---|---|---|'
        for net in self.nets:
            height, width = self.sizes[net.genes[-1]]
            yield f'| {net.cost:.{DIGITS}f} | {net.score:.4f} | {width}x{height} |'
        for name, baseline in self.baselines:
            fitting = [net.score for net in self.nets if net.cost <= baseline.cost]
            best = f'the best net within this cost has {max(fitting):.4f}' if fitting else 'all nets cost more'
            yield f'{name}: {self.metric} {baseline.score:.4f} at {baseline.cost:.{DIGITS}f} {self.unit}; {best}'


def read_cost(flag: str, text: str, unit: str) -> float:
    """Read a cost such as ``12``, ``12ms`` or ``0.25 GMACs``.

    Args:
        flag: Option that the text is the value of, for the message.
        text: The text.
        unit: Unit of the costs that it is compared with, one of ``UNITS``.

    Raises:
        UserError: This is not a positive number, or it has another unit.
    """
    number, found = re.fullmatch(r'(.*?)\s*(ms|gmacs)?', text.strip(), re.I | re.S).groups()  # type: ignore[union-attr]
    try:
        value = float(number)
    except ValueError:
        raise UserError(f'{flag} must be a number of {unit}, got {text!r}') from None
    if found and found.lower() != unit.lower():
        raise UserError(f'{flag} {text}: the costs are in {unit} here{"" if unit == MS else ", not in ms"}')
    if not 0 < value < math.inf:
        raise UserError(f'{flag} must be positive and finite, got {text}')
    return value


def find_front(scored: Iterable[Scored]) -> tuple[Scored, ...]:
    """Return the nets that no other net equals or beats in both score and cost, by ascending cost."""
    nets = sorted(set(scored), key=lambda net: net.genes)  # of equal nets, always the same one
    return tuple(nets[i] for i in pareto_front([(net.cost, net.score) for net in nets]))


def write_front(front: Front, path: Path) -> None:
    """Write a front as JSON.

    Raises:
        UserError: The file cannot be written.
    """
    content = {**front._asdict(), 'supernet': str(front.supernet.resolve())}
    content['nets'] = [net._asdict() for net in front.nets]
    content['baselines'] = {name: net._asdict() for name, net in front.baselines}
    write_whole(path, json.dumps(content, indent=1))


def read_front(path: str | Path) -> Front:
    """Read what ``write_front`` has written.

    Raises:
        UserError: The file is missing, or is not a front.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no front {path}: `mnv4 search run` writes front-<engine>.json')
    try:
        content = json.loads(path.read_bytes())
        nets = tuple(_scored(net) for net in content['nets'])
        sizes = tuple((int(height), int(width)) for height, width in content['sizes'])
        baselines = tuple((name, _scored(net)) for name, net in content['baselines'].items())
        if not nets or content['unit'] not in UNITS:
            raise ValueError('it has no nets, or another unit')
        parts = dict(supernet=Path(content['supernet']), nets=nets, baselines=baselines, sizes=sizes)
        return Front(**{**content, **parts})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f'{path} is not a front, as `mnv4 search run` writes it') from error


def _scored(net: Any) -> Scored:
    return Scored(tuple(net['genes']), float(net['score']), float(net['cost']))
