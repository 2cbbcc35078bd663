"""Search for the nets of a supernet that have the best scores at their costs.

A search depends only on the seed and the scores. If it was stopped and is started again, it asks for the same nets, and
reads the scores that it already has from its records.
"""

import functools
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.child_processes import end_with_parent
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.engine.sandwich import NAME
from mnv4_mm.errors import UserError
from mnv4_mm.json_lines import append_line
from mnv4_mm.models.space import Genes, Space, published_nets
from mnv4_mm.paths import make_output_folder
from mnv4_mm.search.front import GMACS, MS, Front, Scored, find_front
from mnv4_mm.search.latency import LatencyTable, Predictor
from mnv4_mm.search.profile import subject_of
from mnv4_mm.search.records import SCORED, open_scores
from mnv4_mm.search.score import Scorer
from mnv4_mm.weights.checkpoint import read_checkpoint

POPULATION = 50
# Weight of the cost in TuNAS's reward (arXiv 2008.06120, section 3.1).
TUNAS_BETA = -0.07
# Most draws for one random net, until one is within the limit. If none is, the net counts but is not scored.
DRAWS = 20


class NothingFoundError(UserError):
    """A search whose nets are all above the limit."""


class Plan(NamedTuple):
    """Settings of a search.

    Attributes:
        engine: ``nsga2`` for the front of score and cost by NSGA-II; ``tunas`` for the best reward of TuNAS; ``random``
            for random nets.
        nets: Number of nets to ask for. Those that were asked for before, and those above the limit, count too. A
            random net above the limit is drawn again, up to ``DRAWS`` draws in all.
        seed: Seed.
        limit: Largest cost; None for no limit. ``tunas``: the cost that the reward prefers.
        images: Largest number of images to score on.
    """

    engine: str
    nets: int
    seed: int
    limit: float | None
    images: int


def search(
    checkpoint: Path,
    plan: Plan,
    out: Path,
    *,
    latency: LatencyTable | None = None,
    workers: int = 1,
    log: Callable[[str], object] = print,
) -> Front:
    """Search for nets of a supernet.

    The nets are scored in ``workers`` processes. The result does not depend on their number. The published net of the
    space, and the same net with narrower layers or a smaller input, are scored, too, as baselines.

    Args:
        checkpoint: Checkpoint of a supernet.
        plan: What to search for.
        out: Folder for the records, ``scored.jsonl``: one line for each net that was scored.
            It is made if it is missing.
        latency: Latency table of a device. Costs are then latencies in ms that it predicts, and otherwise GMACs.
        workers: Number of processes.
        log: Function that prints a line; called after each generation.

    Returns:
        The front of the nets that this search has asked for.

    Raises:
        UserError: The checkpoint or the data cannot be used, the latency table has another subject, or the records are
            of another supernet or of other images.
        NothingFoundError: All nets that were asked for are above the limit.
    """
    loaded = read_checkpoint(checkpoint)
    predictor = _predictor(latency, checkpoint_config(loaded)) if latency else None
    scorer = Scorer(loaded, plan.images)
    space = scorer.space
    costs = functools.cache(predictor or (lambda genes: scorer.macs(genes) / 1e9))
    unit = MS if latency else GMACS
    # By MACs, no net is cheaper than the smallest. A prediction may be lower for another one.
    if plan.limit is not None and plan.engine != 'tunas' and not latency and costs(space.smallest()) > plan.limit:
        least = f'{costs(space.smallest()):.4f} {unit}'
        raise UserError(f'--limit {plan.limit:g}: the smallest net of the space has {least}')
    make_output_folder('--out', out)
    records = _Records(out / SCORED, dict(supernet=scorer.checkpoint.sha256, images=scorer.digest))
    context = multiprocessing.get_context('spawn')
    asked: dict[Genes, Scored] = {}
    best: Scored | None = None
    with ProcessPoolExecutor(workers, context, _start, (str(checkpoint), plan.images)) as pool:

        def score(nets: Sequence[Genes]) -> list[Scored]:
            known = records.scores
            new = [genes for genes in dict.fromkeys(nets) if genes not in known]
            try:
                for genes, value in zip(new, pool.map(_score, new), strict=True):
                    records.add(genes, value)
            except BrokenProcessPool as error:
                raise UserError(
                    'a process of the search has ended, perhaps for lack of memory: use fewer --workers; the same '
                    'command continues'
                ) from error
            return [Scored(genes, known[genes], costs(genes)) for genes in nets]

        published = published_nets(scorer.cfg[NAME].space)
        baselines = tuple(zip(published, score(list(published.values())), strict=True))
        for generation, nets in enumerate(ask(space, plan, costs, score, first=tuple(published.values())), 1):
            asked |= {net.genes: net for net in nets}
            best = _best(asked.values(), plan)
            shown = f'the best has {best.score:.4f} at {best.cost:.4f} {unit}' if best else 'none within the limit'
            log(f'generation {generation}: {len(asked)} nets scored; {shown}')
    if not asked:
        raise NothingFoundError(f'none of the {plan.nets} nets is within --limit {plan.limit}: ask for more --nets')
    return Front(
        checkpoint,
        scorer.checkpoint.sha256,
        scorer.metric,
        scorer.images,
        plan._asdict() | (dict(latency=_source(latency)) if latency else {}),
        (best,) if plan.engine == 'tunas' and best else find_front(asked.values()),
        scorer.sizes,
        unit,
        baselines,
    )


def _predictor(latency: LatencyTable, cfg: Any) -> Predictor:
    return Predictor(latency, subject_of(cfg), cfg.model.backbone)


def _source(latency: LatencyTable) -> dict[str, Any]:
    """Return the attributes of a front that describe the latency table of its costs."""
    return dict(
        runtime=latency.runtime,
        threads=latency.threads,
        machine=latency.machine,
        date=latency.date,
        coefficients=latency.coefficients,
    )


def ask(
    space: Space,
    plan: Plan,
    cost: Callable[[Genes], float],
    score: Callable[[Sequence[Genes]], list[Scored]],
    *,
    first: Sequence[Genes] = (),
) -> Iterator[list[Scored]]:
    """Ask for nets in generations, and yield the scored nets of each generation, without those above the limit.

    Args:
        space: The search space.
        plan: What to search for.
        cost: Function from genes to the cost.
        score: Function that scores several nets.
        first: Nets that are part of the first generation of ``nsga2`` and ``tunas``, beside random ones.
    """
    tell: Callable[[list[Genes], dict[Genes, Scored]], None]
    propose, tell = _random(space, plan, cost) if plan.engine == 'random' else _optuna(space, plan, cost, first)
    for start in range(0, plan.nets, POPULATION):
        nets = propose(min(POPULATION, plan.nets - start))
        fitting = dict.fromkeys(genes for genes in nets if _is_scored(genes, plan, cost))
        scored = {one.genes: one for one in score(list(fitting))}
        tell(nets, scored)
        yield list(scored.values())


def _is_scored(genes: Genes, plan: Plan, cost: Callable[[Genes], float]) -> bool:
    """Return True if a net is scored: it is within the limit, or the engine is ``tunas``, whose limit is a target."""
    return plan.limit is None or plan.engine == 'tunas' or cost(genes) <= plan.limit


def _random(space: Space, plan: Plan, cost: Callable[[Genes], float]) -> tuple[Callable[[int], list[Genes]], Callable]:
    generator = random.Random(plan.seed)  # noqa: S311

    def draw() -> Genes:
        for _ in range(DRAWS):
            genes = space.sample(generator)
            if _is_scored(genes, plan, cost):
                break
        return genes

    return lambda count: [draw() for _ in range(count)], lambda nets, scored: None


def _optuna(
    space: Space, plan: Plan, cost: Callable[[Genes], float], first: Sequence[Genes]
) -> tuple[Callable[[int], list[Genes]], Callable]:
    import optuna  # of the extra `search`; the command checks that it is installed

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [up] if plan.engine == 'tunas' else [up, down]
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=plan.seed)
    study = optuna.create_study(directions=directions, sampler=sampler)
    # The values of a variable have an order, see ``Variable``; uniform crossover takes each from one of the parents.
    ranges: Any = {
        variable.name: optuna.distributions.IntDistribution(0, len(variable.values) - 1)
        for variable in space.variables()
    }
    # Random nets are mostly smaller than the published ones, and Optuna's own would hardly have shallow nets.
    draw, _ = _random(space, plan, cost)
    for genes in [*first, *draw(POPULATION - len(first))]:
        study.enqueue_trial(dict(zip(ranges, genes, strict=True)))
    pending: list[Any] = []

    def propose(count: int) -> list[Genes]:
        pending[:] = [study.ask(ranges) for _ in range(count)]
        for trial in pending:
            # Optuna assigns a generation to a trial only when `relative_params` is first read. Enqueued parameters do
            # not read it, so that without this line NSGA-II would not take the first generation as parents.
            _ = trial.relative_params
        return [space.canonical([trial.params[name] for name in ranges]) for trial in pending]

    def tell(nets: list[Genes], scored: dict[Genes, Scored]) -> None:
        for trial, genes in zip(pending, nets, strict=True):
            net = scored.get(genes)
            if plan.engine == 'tunas':
                assert net is not None
                study.tell(trial, [reward(net, plan.limit)])
            else:
                # Nets within the limit beat those above it; among the latter, the cheaper ones lead back to it.
                study.tell(trial, [net.score, net.cost] if net else [-1.0, cost(genes)])

    return propose, tell


def _best(nets: Iterable[Scored], plan: Plan) -> Scored | None:
    """Return the net with the best score or, for ``tunas``, the best reward; None if there are none."""
    target = plan.limit if plan.engine == 'tunas' else None
    return max(nets, key=lambda net: reward(net, target), default=None)


def reward(net: Scored, target: float | None) -> float:
    """Return TuNAS's absolute reward, ``score + beta * |cost / target - 1|`` (arXiv 2008.06120, equation 3).

    Args:
        net: The net.
        target: Cost that is preferred. None leaves out the second term.
    """
    return net.score + (TUNAS_BETA * abs(net.cost / target - 1) if target else 0.0)


class _Records:
    """Scores in a file, see ``search.records``."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.scores: dict[Genes, float] = {}
        for record in open_scores(path, **about):
            if {'genes', 'score'} <= record.keys():
                self.scores[tuple(record['genes'])] = record['score']

    def add(self, genes: Genes, score: float) -> None:
        self.scores[genes] = score
        append_line(self.path, dict(genes=list(genes), score=score))


_scorer: Scorer | None = None


def _start(checkpoint: str, images: int) -> None:
    """Start a process of the pool: it reads the checkpoint and the images once, and uses one thread."""
    global _scorer
    end_with_parent()
    import torch
    from mmengine.logging import MMLogger

    torch.set_num_threads(1)
    MMLogger.get_current_instance().setLevel('WARNING')  # the metrics of each net
    _scorer = Scorer(checkpoint, images)


def _score(genes: Genes) -> float:
    assert _scorer is not None
    return _scorer.score(genes)
