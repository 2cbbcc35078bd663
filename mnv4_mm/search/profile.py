"""Measure the latency table of a search space, from blocks and whole nets in a runtime on this device."""

import datetime
import hashlib
import json
import random
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from mmengine.config import Config

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.supernet import model_digest, space_of, with_subnet
from mnv4_mm.deploy.describe import default_size, describe
from mnv4_mm.deploy.graph import Graph, build_graph
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.engine.runner import quiet_losses
from mnv4_mm.engine.sandwich import NAME
from mnv4_mm.errors import UserError
from mnv4_mm.json_lines import append_line, read_whole_lines
from mnv4_mm.models.arch import PlacedRow
from mnv4_mm.models.layers import Style
from mnv4_mm.models.mobilenetv4 import build_block
from mnv4_mm.models.space import Genes, Space, at_scale
from mnv4_mm.runtime.meta import read_meta
from mnv4_mm.search.blocks import all_blocks, blocks_of, choose_blocks, input_size, layers_of
from mnv4_mm.search.latency import (
    FILES_MARKER,
    BlockTime,
    BlockTimes,
    LatencyTable,
    NetTime,
    Subject,
    block_content,
    check_files_folder,
    predicted,
    write_table,
)
from mnv4_mm.search.predict import fit_nets, fit_roofline
from mnv4_mm.search.roofline import roofline_features, roofline_ms
from mnv4_mm.tasks import build_model, task_of
from mnv4_mm.transfer.exported import check_output, convert, net_graph, session, time_inferences
from mnv4_mm.transfer.machine import describe_machine
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint

ROUNDS = 5
SECONDS = 0.1  # for each file in each round
TOLERANCE = 1e-2  # largest difference from PyTorch, relative to the largest output
FIT_SEED, CHECK_SEED = 0, 1


class Plan(NamedTuple):
    """Settings of a profile.

    Attributes:
        runtime: A key of ``TARGETS`` whose files run here.
        threads: Number of threads.
        nets: Number of whole nets to fit to, at least 3: the smallest, the largest and random ones.
        blocks: Number of blocks to measure; None for all.
        check: Number of other random nets, on which the prediction is checked.
    """

    runtime: str
    threads: int = 1
    nets: int = 24
    blocks: int | None = 120
    check: int = 0


Item = PlacedRow | Genes  # a block or a net


class Supernet:
    """The nets of a supernet, built from their configs with random weights: latency does not depend on the weights.

    Args:
        checkpoint: Checkpoint of a supernet.

    Attributes:
        cfg: Its config.
        space: Its search space.
        subject: Subject of its latency tables.

    Raises:
        UserError: The checkpoint cannot be read or is not that of a supernet, or it cannot be exported.
    """

    def __init__(self, checkpoint: str | Path | Checkpoint) -> None:
        loaded = read_checkpoint(checkpoint)
        self.cfg = checkpoint_config(loaded)
        self.space: Space = space_of(self.cfg)
        self.subject = subject_of(self.cfg)
        self.backbone = self.cfg.model.backbone
        self._meta = loaded.meta

    def graph(self, item: Item, runtime: str) -> Graph:
        """Return the graph of a block or of a whole net, the latter with its raw outputs."""
        torch.manual_seed(0)
        if isinstance(item, PlacedRow):
            arch = self.space.subnet(self.space.largest()).arch
            act_cfg = self.backbone.get('act_cfg') or dict(type=arch.act)
            style = Style(self.backbone.get('norm_cfg') or dict(type='BN'), act_cfg, arch.layer_scale)
            size = input_size(item, self.subject.sizes[-1])
            return net_graph(build_block(item, style), size, runtime, item.channels)
        cfg = with_subnet(self.cfg, item)
        with quiet_losses():
            model: Any = build_model(cfg)
        model.cfg, model.dataset_meta, model.checkpoint_meta = cfg, self._meta.get('dataset_meta', {}), self._meta
        return build_graph(model.eval(), describe(model, TARGETS[runtime], kind=task_of(cfg).raw_output))


def subject_of(cfg: Config) -> Subject:
    """Return the space, input sizes and model digest that identify a latency table.

    Raises:
        UserError: This is not the config of a supernet, or it cannot be exported.
    """
    space = space_of(cfg)
    nets = [at_scale(space.largest(), number) for number in range(len(space.scales))]
    return Subject(cfg[NAME].space, tuple(default_size(with_subnet(cfg, genes)) for genes in nets), model_digest(cfg))


def profile(checkpoint: Path, plan: Plan, out: Path, *, log: Callable[[str], object] = print) -> LatencyTable:
    """Measure and write a latency table.

    Measurements are kept in a ``.jsonl`` file next to the table. A profile that was stopped continues from this file,
    and one with other numbers of blocks and nets measures only the new ones. Exported files are kept in a ``.files``
    folder next to the table until the table is written.

    Args:
        checkpoint: Checkpoint of a supernet.
        plan: What to measure.
        out: The table to write, ``.json``.
        log: Function that prints a line.

    Raises:
        UserError: The checkpoint cannot be used, the measurements are of another supernet or device, another process
            writes them, the ``.files`` folder was not made by a profile, or too few nets could be measured.
    """
    supernet = Supernet(checkpoint)  # before the lock, whose file stays
    try:
        with FileLock(out.with_name(f'.{out.name}.lock'), timeout=0):
            return _profile(supernet, plan, out, log)
    except Timeout as error:
        raise UserError(f'another process writes {out}: wait for it, or name another table by --out') from error


def _profile(supernet: Supernet, plan: Plan, out: Path, log: Callable[[str], object]) -> LatencyTable:
    folder = check_files_folder(out)
    torch.set_num_threads(1)
    fitted, checked = choose_nets(supernet.space, plan.nets, plan.check)
    every = all_blocks(supernet.space, supernet.backbone)
    count = len(every) if plan.blocks is None else plan.blocks
    blocks = choose_blocks(every, supernet.space, supernet.backbone, supernet.subject.sizes[-1], count)
    machine = describe_machine(())
    machine['versions'] |= dict(torch=torch.__version__, **TARGETS[plan.runtime].versions())
    same = {key: machine[key] for key in ('cpu', 'instructions', 'cores', 'versions', 'commit')}
    about = dict(runtime=plan.runtime, threads=plan.threads, **supernet.subject._asdict(), **same)
    path = out.with_suffix('.jsonl')
    if not read_whole_lines(path):
        # Files left by a profile whose measurements are gone may be of another supernet. They are removed before the
        # new measurements have their first line, which says what the files are of.
        _remove_files(folder)
    records = _Records(path, json.loads(json.dumps(about)))
    measured = _measure(supernet, plan, [*fitted, *checked, *blocks], records, folder, log)
    table = make_table(
        supernet,
        plan.runtime,
        plan.threads,
        machine,
        {block: measured[block] for block in blocks if block in measured},
        {genes: measured[genes] for genes in fitted if genes in measured},
        {genes: measured[genes] for genes in checked if genes in measured},
    )
    write_table(table, out)
    _remove_files(folder)
    return table


def _remove_files(folder: Path) -> None:
    """Remove the folder of exported files, its marker last: the next profile accepts what an interruption leaves."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != FILES_MARKER:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def choose_nets(space: Space, count: int, check: int) -> tuple[list[Genes], list[Genes]]:
    """Return the nets to fit to, the smallest and the largest one first, and other random nets to check on."""
    fitted = [space.smallest(), space.largest()]
    generator = random.Random(FIT_SEED)  # noqa: S311
    while len(fitted) < count:
        fitted.append(space.sample(generator))
    fitted = fitted[:count]
    generator = random.Random(CHECK_SEED)  # noqa: S311
    checked: list[Genes] = []
    while len(checked) < check:
        genes = space.sample(generator)
        if genes not in fitted and genes not in checked:
            checked.append(genes)
    return fitted, checked


def make_table(
    supernet: Supernet,
    runtime: str,
    threads: int,
    machine: dict[str, Any],
    blocks: Mapping[PlacedRow, float],
    nets: Mapping[Genes, float],
    checked: Mapping[Genes, float],
) -> LatencyTable:
    """Fit a latency table to measurements in ms.

    Args:
        supernet: The supernet.
        runtime: See ``LatencyTable``.
        threads: See ``LatencyTable``.
        machine: See ``LatencyTable``.
        blocks: Latencies of blocks. If there are none, those of all blocks are fitted to the nets.
        nets: Latencies of whole nets to fit to.
        checked: Latencies of whole nets that are not used for the fit.

    Raises:
        UserError: There are fewer than three nets.
    """
    if len(nets) < 3:
        raise UserError(f'{len(nets)} nets could be measured, and a latency table needs at least 3')
    space, backbone, size = supernet.space, supernet.backbone, supernet.subject.sizes[-1]
    layers = {block: roofline_features(layers_of(block, size)) for block in all_blocks(space, backbone)}
    if blocks:
        roofline = fit_roofline([layers[block] for block in blocks], list(blocks.values()))
    else:
        sums = [
            np.sum(
                [
                    roofline_features(layers_of(block, supernet.subject.size_of(genes)))
                    for block in blocks_of(space.subnet(genes).arch, backbone)
                ],
                axis=0,
            )
            for genes in nets
        ]
        # The constant is that of a net, and comes back in the coefficients.
        roofline = fit_roofline([np.append(one[:-1], 1.0) for one in sums], list(nets.values())) | dict(constant=0.0)
    times = {block: roofline_ms(roofline, one) for block, one in layers.items()} | dict(blocks)
    block_times = BlockTimes(supernet.subject, backbone, times, roofline)
    features = {genes: block_times.features(genes) for genes in dict.fromkeys([*nets, *checked])}
    coefficients = fit_nets([features[genes] for genes in nets], list(nets.values()))

    def predictions(measured: Mapping[Genes, float]) -> tuple[NetTime, ...]:
        return tuple(NetTime(genes, ms, predicted(coefficients, features[genes])) for genes, ms in measured.items())

    return LatencyTable(
        supernet.subject,
        runtime,
        threads,
        machine,
        datetime.date.today().isoformat(),
        roofline,
        coefficients,
        tuple(BlockTime(block, times[block], block in blocks) for block in layers),
        predictions(nets),
        predictions(checked),
    )


def _measure(
    supernet: Supernet,
    plan: Plan,
    items: Sequence[Item],
    records: '_Records',
    folder: Path,
    log: Callable[[str], object],
) -> dict[Item, float]:
    """Measure items that have no records yet, and return the latency in ms of each item that could be exported.

    All files are measured in each round, so that a change of the speed of the device affects all of them. The latency
    of an item is the lowest of the medians of its rounds, because other processes can only add to it.
    """
    names = {item: _name(item) for item in items}
    pending = [item for item in items if records.missing(names[item])]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILES_MARKER).touch()
    files: dict[Item, Path] = {}
    failed = 0
    for number, item in enumerate(pending, 1):
        path = folder / f'{hashlib.sha256(names[item].encode()).hexdigest()[:16]}{TARGETS[plan.runtime].suffix}'
        try:
            if not path.exists():
                _export(supernet.graph(item, plan.runtime), path)
            files[item] = path
        except Exception as error:  # converters raise errors of many kinds
            failed += 1
            log(f'{names[item]}: {type(error).__name__}: {" ".join(str(error).split())[:200]}')
        if number % 10 == 0 or number == len(pending):
            log(f'{number} of {len(pending)} files exported')
    if failed:
        log(f'warning: {failed} of {len(pending)} blocks and nets could not be exported, and are not measured')
    random.Random(0).shuffle(order := list(files))  # noqa: S311 (blocks and nets alternate)
    for number in range(ROUNDS):
        todo = [item for item in order if number in records.missing(names[item])]
        for item in todo:
            channels = item.channels if isinstance(item, PlacedRow) else 3
            run, batch = session(files[item], plan.threads), _inputs(files[item], channels)
            times, _ = time_inferences(run, batch, SECONDS)
            records.add(names[item], number, round(statistics.median(times), 5))
        if todo:
            log(f'round {number + 1} of {ROUNDS}')
    return {item: min(records.rounds[name].values()) for item, name in names.items() if not records.missing(name)}


def _export(graph: Graph, path: Path) -> None:
    """Convert a graph, and move the file to its place once it has been compared with PyTorch."""
    with TemporaryDirectory(dir=path.parent) as temporary:
        written = convert(graph, Path(temporary), path.stem)
        check_output(graph, written, TOLERANCE)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file == written):  # the file itself last
            file.replace(path.parent / file.name)


def _inputs(path: Path, channels: int) -> np.ndarray:
    """Return a random input batch of an exported file, in its layout and type."""
    to = read_meta(path).input
    assert to.size is not None
    shape = (1, channels, *to.size) if to.layout == 'NCHW' else (1, *to.size, channels)
    generator = np.random.default_rng(0)
    if to.dtype == 'uint8':
        return generator.integers(0, 256, shape, np.uint8)
    return generator.standard_normal(shape, np.float32)


def _name(item: Item) -> str:
    """Return the name of a block or net in the records."""
    return json.dumps(block_content(item) if isinstance(item, PlacedRow) else list(item))


class _Records:
    """Measurements in a file of JSON Lines. The first line says what was measured and where.

    Attributes:
        rounds: Latency in ms of each round, by the name of an item.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.rounds: dict[str, dict[int, float]] = {}
        self._path = path
        lines = read_whole_lines(path)
        if lines and lines[0] != about:
            old = lines[0] if isinstance(lines[0], dict) else {}
            differ = ', '.join(key for key in about if old.get(key) != about[key])
            raise UserError(f'{path} has measurements with other values of {differ}: name another table by --out')
        for line in lines[1:]:
            if isinstance(line, dict) and line.keys() == {'item', 'round', 'ms'} and isinstance(line['item'], str):
                self.rounds.setdefault(line['item'], {})[line['round']] = line['ms']
        if not lines:
            append_line(path, about)

    def missing(self, name: str) -> list[int]:
        """Return the rounds in which an item has not been measured."""
        return [number for number in range(ROUNDS) if number not in self.rounds.get(name, {})]

    def add(self, name: str, number: int, ms: float) -> None:
        """Add the latency of an item in a round."""
        self.rounds.setdefault(name, {})[number] = ms
        append_line(self._path, dict(item=name, round=number, ms=ms))
