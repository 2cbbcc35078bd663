"""Comparison of the scores of a supernet with those of the same nets trained alone, on the same images."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from scipy import stats

from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.child_processes import failure_of, read_task, run_child
from mnv4_mm.config.supernet import with_subnet
from mnv4_mm.data.held_out import KEY
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.json_lines import append_line, read_whole_lines
from mnv4_mm.models.space import Genes, Space
from mnv4_mm.processors import cores
from mnv4_mm.search.score import Scorer
from mnv4_mm.weights.work_dir import list_checkpoints

RECORDS = 'ranked.jsonl'
NET_SEED = 2  # of the nets; 0 and 1 are those of a profile
RESAMPLES = 1000


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
    """

    genes: Genes
    shared: float
    alone: float


class Ranking(NamedTuple):
    """Nets that were scored both ways.

    Attributes:
        metric: Name of the metric of the scores.
        nets: The nets.
    """

    metric: str
    nets: tuple[Ranked, ...]

    def kendall(self) -> tuple[float, tuple[float, float]] | None:
        """Return Kendall's tau-b between both scores, and its 95 % interval by a bootstrap over the nets.

        It is None if all nets have the same score.
        """
        values = np.array([(net.shared, net.alone) for net in self.nets])
        if np.ptp(values, axis=0).min() == 0:
            return None
        generator = np.random.default_rng(0)
        samples = [
            stats.kendalltau(*values[generator.integers(len(values), size=len(values))].T).statistic
            for _ in range(RESAMPLES)
        ]
        low, high = np.nanpercentile(samples, [2.5, 97.5])
        return float(stats.kendalltau(*values.T).statistic), (float(low), float(high))

    def lines(self) -> list[str]:
        """Return the lines of a Markdown table, by descending score alone, and Kendall's tau."""
        found = self.kendall()
        tau = (
            f'{found[0]:.2f}, 95 % interval {found[1][0]:.2f} to {found[1][1]:.2f}' if found else 'all scores are equal'
        )
        ordered = sorted(self.nets, key=lambda net: -net.alone)
        return [
            f'| {self.metric} alone | {self.metric} in the supernet | genes |',
            '|---|---|---|',
            *(f'| {net.alone:.4f} | {net.shared:.4f} | {"".join(map(str, net.genes))} |' for net in ordered),
            f'Kendall tau of {len(self.nets)} nets: {tau}',
        ]


def rank(checkpoint: Path, plan: Plan, out: Path, *, workers: int = 1, log: Callable[[str], object] = print) -> Ranking:
    """Train random nets of a supernet alone, from random weights, and score them both ways.

    The nets are trained on the images that the supernet was trained on, with its config, and scored on the images that
    were held out. A net that has a record is not trained again.

    Args:
        checkpoint: Checkpoint of the supernet.
        plan: What to train.
        out: Folder for the trainings and the records, ``ranked.jsonl``. It is made if it is missing.
        workers: Number of trainings at the same time, which share the cores.
        log: Function that prints a line; called after each net.

    Raises:
        UserError: The checkpoint or its data cannot be used, the records are of something else, another process uses
            the folder, or a training fails.
    """
    scorer = Scorer(checkpoint, plan.images)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / f'.{RECORDS}.use.lock', timeout=0):
            return _rank(scorer, plan, out, workers, log)
    except Timeout:
        raise UserError(f'another process ranks nets in {out}: wait for it, or name another folder by --out') from None


def _rank(scorer: Scorer, plan: Plan, out: Path, workers: int, log: Callable[[str], object]) -> Ranking:
    path = out / RECORDS
    about: dict[str, Any] = dict(supernet=scorer.checkpoint.sha256, images=scorer.digest)
    about |= dict(epochs=plan.epochs, iters=plan.iters, seed=plan.seed)
    lines = read_whole_lines(path)
    if lines and lines[0] != about:
        raise UserError(f'{path} is of another supernet or of other trainings: name another folder by --out')
    if not lines:
        append_line(path, about)
    known = {
        tuple(line['genes']): Ranked(tuple(line['genes']), line['shared'], line['alone'])
        for line in lines[1:]
        if isinstance(line, dict) and line.keys() == set(Ranked._fields)
    }
    nets = choose_nets(scorer.space, plan.nets)
    processes: set[subprocess.Popen] = set()
    threads = max(1, cores() // workers)
    pool = ThreadPoolExecutor(workers)
    try:
        pending = {
            pool.submit(_train_alone, scorer, genes, plan, out, threads, processes): genes
            for genes in nets
            if genes not in known
        }
        for future in as_completed(pending):
            genes, folder = pending[future], future.result()
            model = load_model(list_checkpoints(folder)[0], device='cpu')
            net = known[genes] = Ranked(genes, scorer.score(genes), scorer.score_model(model, genes))
            append_line(path, net._asdict())
            log(f'{len(known)} of {len(nets)} nets: {net.alone:.4f} alone, {net.shared:.4f} in the supernet')
    finally:  # also on Ctrl-C, which does not reach the trainings
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(processes):
            process.kill()
    return Ranking(scorer.metric, tuple(known[genes] for genes in nets))


def choose_nets(space: Space, count: int) -> list[Genes]:
    """Return random nets, all different, always the same ones."""
    generator = random.Random(NET_SEED)  # noqa: S311
    nets: dict[Genes, None] = {}
    while len(nets) < count:
        nets[space.sample(generator)] = None
    return list(nets)


def _train_alone(
    scorer: Scorer, genes: Genes, plan: Plan, out: Path, threads: int, processes: set[subprocess.Popen]
) -> Path:
    """Train a net from random weights in a process of its own, and return its work directory."""
    folder = out / f'net_{"".join(map(str, genes))}'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cfg = with_subnet(scorer.cfg, genes)
    for key in ('resume', 'work_dir', 'launcher', 'load_from'):
        cfg.pop(key, None)
    cfg.train_dataloader[KEY] = scorer.cfg.train_dataloader[KEY]  # the images that nets are scored on stay held out
    write_whole(folder / 'net.py', cfg.pretty_text)
    options: dict[str, Any] = {
        'train_cfg.val_begin': 10**9,  # scored once, at the end
        'default_hooks.checkpoint.interval': 10**9,
        'randomness.seed': plan.seed,
    }
    task = dict(config=str(folder / 'net.py'), work_dir=str(folder / 'run'), epochs=plan.epochs, iters=plan.iters)
    code = run_child(
        'mnv4_mm.search.rank', json.dumps(task | dict(cfg_options=options)), folder / 'run.log', threads, processes
    )
    if code:
        raise UserError(f'the training of {folder.name} has failed: {failure_of(code, folder / "run.log")}')
    return folder / 'run'


def main() -> None:
    """Train the net of a task that ``_train_alone`` has sent."""
    train(**json.loads(read_task()))


if __name__ == '__main__':
    main()
