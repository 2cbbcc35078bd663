"""Comparison of the scores of a supernet with those of the same nets trained alone, on the same images."""

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from mmengine.logging import MMLogger

from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.child_processes import Children, failure_of, run_task
from mnv4_mm.config.rules import check_precision
from mnv4_mm.config.supernet import with_subnet
from mnv4_mm.data.held_out import KEY
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.json_lines import append_line
from mnv4_mm.models.space import Genes, Space
from mnv4_mm.processors import cores
from mnv4_mm.search.records import RANKED, open_scores
from mnv4_mm.search.score import Scorer
from mnv4_mm.weights.work_dir import list_checkpoints

NET_SEED = 2  # of the nets; 0 and 1 are those of a profile
RESAMPLES = 1000
MIN_PAIRS = 15  # for an interval of tau: those of six nets


class Plan(NamedTuple):
    """Settings of a ranking.

    Attributes:
        nets: Number of random nets, at least 3.
        epochs: Epochs of the training of each; None if ``iters`` is given.
        iters: Iterations of the training of each; None if ``epochs`` is given.
        seed: Seed of the trainings.
        images: Largest number of images to score on.
    """

    nets: int
    epochs: int | None
    iters: int | None
    seed: int = 0
    images: int = 500


class Ranked(NamedTuple):
    """A net that was trained alone.

    Attributes:
        genes: The net.
        shared: Its score with its part of the weights of the supernet.
        alone: Its score after a training of its own.
        gmacs: Billions of multiply-accumulates of its backbone for one image.
        size: Height and width in pixels of this image.
    """

    genes: Genes
    shared: float
    alone: float
    gmacs: float
    size: tuple[int, int]


class Ranking(NamedTuple):
    """Nets that were scored both ways.

    Attributes:
        metric: Name of the metric of the scores.
        nets: The nets.
    """

    metric: str
    nets: tuple[Ranked, ...]

    def lines(self) -> list[str]:
        """Return the lines of a Markdown table, by descending score alone, and Kendall's tau.

        There is a second line with the tau of the pairs of nets that have the same input size. The input size alone
        changes scores so much that it can raise the tau of all pairs. The last line has the same two of the nets'
        GMACs: a supernet whose scores rank nets no better is of no use.
        """
        ordered = sorted(self.nets, key=lambda net: -net.alone)
        by_macs = [net._replace(shared=net.gmacs) for net in self.nets]
        every, same = (_tau_text(by_macs, within_sizes=within) for within in (False, True))
        return [
            f'| {self.metric} alone | {self.metric} in the supernet | GMACs | input | genes |',
            '|---|---|---|---|---|',
            *(
                f'| {net.alone:.4f} | {net.shared:.4f} | {net.gmacs:.4f} | {net.size[1]}x{net.size[0]} | '
                f'{"".join(map(str, net.genes))} |'
                for net in ordered
            ),
            f'Kendall tau of {len(self.nets)} nets: {_tau_text(self.nets)}',
            f'{pairs_of(self.nets, within_sizes=True)} pairs of the same input size only: '
            f'{_tau_text(self.nets, within_sizes=True)}',
            f'with GMACs instead of scores in the supernet: {every}; of the same input size only: {same}',
        ]


def kendall(nets: Sequence[Ranked], *, within_sizes: bool = False) -> tuple[float, tuple[float, float]]:
    """Return Kendall's tau-b between both scores of nets, and its 95 % interval by a bootstrap over the nets.

    Args:
        nets: The nets.
        within_sizes: Count only pairs of nets with the same input size.

    Returns:
        Tau and its interval. Tau is NaN if one of the scores is equal in all pairs; the interval is NaN with fewer than
        ``MIN_PAIRS`` pairs, for which a bootstrap is too narrow.
    """
    shared, alone = (np.sign(column[:, None] - column) for column in _columns(nets))
    counted = _counted(nets, within_sizes)

    def tau(chosen: np.ndarray) -> float:
        pairs = np.ix_(chosen, chosen)
        a, b = (signs[pairs][counted[pairs]] for signs in (shared, alone))
        scale = math.sqrt(float((a**2).sum() * (b**2).sum()))
        return float((a * b).sum()) / scale if scale else math.nan

    count = len(nets)
    if pairs_of(nets, within_sizes=within_sizes) < MIN_PAIRS:
        return tau(np.arange(count)), (math.nan, math.nan)
    generator = np.random.default_rng(0)
    samples = [value for _ in range(RESAMPLES) if not math.isnan(value := tau(generator.integers(count, size=count)))]
    low, high = np.percentile(samples, [2.5, 97.5]) if samples else (math.nan, math.nan)
    return tau(np.arange(count)), (float(low), float(high))


def pairs_of(nets: Sequence[Ranked], *, within_sizes: bool = False) -> int:
    """Return the number of pairs of nets; with ``within_sizes``, of those with the same input size."""
    return (int(_counted(nets, within_sizes).sum()) - len(nets)) // 2


def _counted(nets: Sequence[Ranked], within_sizes: bool) -> np.ndarray:
    """Return a symmetric matrix that is True for each pair of nets that counts, and for a net and itself."""
    sizes = np.array([net.size for net in nets])
    return (sizes[:, None] == sizes).all(2) if within_sizes else np.ones((len(nets),) * 2, bool)


def _columns(nets: Sequence[Ranked]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([net.shared for net in nets]), np.array([net.alone for net in nets])


def _tau_text(nets: Sequence[Ranked], *, within_sizes: bool = False) -> str:
    if not pairs_of(nets, within_sizes=within_sizes):
        return 'not defined, there are no such pairs'
    tau, (low, high) = kendall(nets, within_sizes=within_sizes)
    if math.isnan(tau):
        return 'not defined, one of the two scores is equal in all pairs'
    interval = 'no interval of so few pairs' if math.isnan(low) else f'95 % interval {low:.2f} to {high:.2f}'
    return f'{tau:.2f}, {interval}'


def rank(checkpoint: Path, plan: Plan, out: Path, *, workers: int = 1, log: Callable[[str], object] = print) -> Ranking:
    """Train random nets of a supernet alone, from random weights, and score them both ways.

    The nets are trained on the images that the supernet was trained on, with its config, and scored on the images that
    were held out. A net that has a record is not trained again, and a training that was stopped is resumed.

    Args:
        checkpoint: Checkpoint of the supernet.
        plan: What to train.
        out: Folder for the trainings and the records, ``ranked.jsonl``. It is made if it is missing.
        workers: Number of trainings at the same time, which share the cores.
        log: Function that prints a line; called at the start and after each net.

    Raises:
        UserError: The checkpoint or its data cannot be used, the records are of something else, another process uses
            the folder, or a training fails.
    """
    scorer = Scorer(checkpoint, plan.images)
    if scorer.cfg.optim_wrapper.get('dtype') == 'float16':
        check_precision('fp16', torch.cuda.is_available())
    out.mkdir(parents=True, exist_ok=True)
    MMLogger.get_current_instance().setLevel('WARNING')  # the metrics of each net
    try:
        with FileLock(out / f'.{RANKED}.use.lock', timeout=0):
            return _rank(scorer, plan, out, workers, log)
    except Timeout:
        raise UserError(f'another process ranks nets in {out}: wait for it, or name another folder by --out') from None


def _rank(scorer: Scorer, plan: Plan, out: Path, workers: int, log: Callable[[str], object]) -> Ranking:
    path = out / RANKED
    about: dict[str, Any] = dict(supernet=scorer.checkpoint.sha256, images=scorer.digest)
    about |= dict(epochs=plan.epochs, iters=plan.iters, seed=plan.seed)
    known: dict[Genes, Ranked] = {}
    for line in open_scores(path, **about):
        if line.keys() == set(Ranked._fields):
            known[tuple(line['genes'])] = Ranked(**{**line, 'genes': tuple(line['genes']), 'size': tuple(line['size'])})
    nets = choose_nets(scorer.space, plan.nets)
    missing = [genes for genes in nets if genes not in known]
    if missing:
        log(f'training {len(missing)} nets, {workers} at a time; what they print is in {out}/net_*/run.log')
    children = Children()
    threads = max(1, cores() // workers)
    pool = ThreadPoolExecutor(workers)
    try:
        pending = {pool.submit(_train_alone, scorer, genes, plan, out, threads, children): genes for genes in missing}
        for future in as_completed(pending):
            genes, folder = pending[future], future.result()
            model = load_model(list_checkpoints(folder)[0], device='cpu')
            shared, alone = scorer.score(genes), scorer.score_model(model, genes)
            size = scorer.sizes[scorer.space.scale_number(genes)]
            net = known[genes] = Ranked(genes, shared, alone, scorer.macs(genes) / 1e9, size)
            append_line(path, net._asdict())
            done = sum(genes in known for genes in nets)
            log(f'{done} of {len(nets)} nets: {net.alone:.4f} alone, {net.shared:.4f} in the supernet')
    finally:  # also on Ctrl-C, which does not reach the trainings
        pool.shutdown(wait=False, cancel_futures=True)
        children.kill()
    return Ranking(scorer.metric, tuple(known[genes] for genes in nets))


def choose_nets(space: Space, count: int) -> list[Genes]:
    """Return random nets, all different, always the same ones."""
    generator = random.Random(NET_SEED)  # noqa: S311
    nets: dict[Genes, None] = {}
    while len(nets) < count:
        nets[space.sample(generator)] = None
    return list(nets)


def _train_alone(scorer: Scorer, genes: Genes, plan: Plan, out: Path, threads: int, children: Children) -> Path:
    """Train a net from random weights in a process of its own, and return its work directory."""
    folder = out / f'net_{"".join(map(str, genes))}'
    cfg = with_subnet(scorer.cfg, genes, codes_in_pixels=False)
    for key in ('resume', 'work_dir', 'launcher', 'load_from'):
        cfg.pop(key, None)
    cfg.train_dataloader[KEY] = scorer.cfg.train_dataloader[KEY]  # the images that nets are scored on stay held out
    config, run = folder / 'net.py', folder / 'run'
    length = f'{plan.epochs} epochs' if plan.epochs else f'{plan.iters} iterations'
    text = f'# {length}, seed {plan.seed}\n{cfg.pretty_text}'  # a training with others is not resumed
    resumes = config.is_file() and config.read_text(encoding='utf-8') == text and bool(list_checkpoints(run))
    if not resumes:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_whole(config, text)
    # Scored once, at the end.
    options = {'train_cfg.val_begin': 10**9, 'randomness.seed': plan.seed}
    task = dict(config=str(config), work_dir=str(run), epochs=plan.epochs, iters=plan.iters, resume=resumes)
    log = folder / 'run.log'
    code = children.run('mnv4_mm.search.rank', json.dumps(task | dict(cfg_options=options)), log, threads)
    if code:
        raise UserError(f'the training of {folder.name} has failed: {failure_of(code, log)}')
    return run


def main(task: str) -> None:
    """Train the net of a task that ``_train_alone`` has sent."""
    train(**json.loads(task))


if __name__ == '__main__':
    run_task(main)
