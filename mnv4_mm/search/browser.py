"""Latency table of a browser, made from measurements of nets that are exported as web pages."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from mnv4_mm.deploy.artifacts import Artifact
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.export import write
from mnv4_mm.deploy.graph import build_graph
from mnv4_mm.deploy.measured import Measurement, measured_files
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.models.space import Genes
from mnv4_mm.runtime.meta import read_meta, sidecar
from mnv4_mm.search.latency import LatencyTable, write_table
from mnv4_mm.search.profile import Supernet, choose_nets, make_table
from mnv4_mm.search.score import Scorer
from mnv4_mm.weights.checkpoint import read_checkpoint

INDEX = 'nets.json'
TARGET = TARGETS['web']


def write_nets(
    checkpoint: Path, nets: int, check: int, folder: Path, *, log: Callable[[str], object] = print
) -> list[Path]:
    """Write nets as web pages, and ``nets.json`` with the genes of each. Existing pages are kept.

    Each net has its part of the supernet's weights and norm statistics of its own: the pages select boxes, and the time
    that this takes depends on the scores.

    Args:
        checkpoint: Checkpoint of a supernet.
        nets: Number of nets to fit to.
        check: Number of other nets.
        folder: Existing folder to write to.
        log: Function that prints a line.

    Returns:
        The pages, folders that end in ``.web``.

    Raises:
        UserError: The checkpoint or its data cannot be used, or the nets cannot be exported.
    """
    scorer = Scorer(checkpoint, images=1)
    chosen = [genes for part in choose_nets(scorer.space, nets, check) for genes in part]
    index = {f'net_{"".join(map(str, genes))}{TARGET.suffix}': genes for genes in chosen}
    if (folder / INDEX).is_file():
        _read_index(folder, scorer.checkpoint.sha256)  # pages of another supernet would be kept
    write_whole(folder / INDEX, json.dumps(dict(sha256=scorer.checkpoint.sha256, nets=index), indent=1))
    for name, genes in index.items():
        path = folder / name
        if not sidecar(path).is_file():
            model, cfg = scorer.model(genes)
            meta = scorer.checkpoint.meta
            model.cfg, model.dataset_meta, model.checkpoint_meta = cfg, meta.get('dataset_meta', {}), meta
            write(build_graph(model, describe(model, TARGET)), TARGET, path)
            log(str(path))
    return [folder / name for name in index]


def browser_table(
    checkpoint: Path, nets: int, check: int, folder: Path, measurements: Sequence[Measurement], out: Path
) -> LatencyTable:
    """Make and write a latency table from measurements of the pages that ``write_nets`` has written.

    Args:
        checkpoint: Checkpoint of the supernet.
        nets: See ``write_nets``.
        check: See ``write_nets``.
        folder: Folder of the pages.
        measurements: Lines of a page, all of one device, browser, backend and number of threads. Of several lines of
            one page, the median counts.
        out: The table to write, ``.json``.

    Raises:
        UserError: The folder has been written for another supernet or is damaged, a line belongs to none of its pages,
            the lines are of several devices or of too few nets, or the smallest or largest net is missing.
    """
    loaded = read_checkpoint(checkpoint)
    supernet = Supernet(loaded)
    devices = sorted({str(one) for one in measurements})
    if len(devices) > 1:
        raise UserError(f'--measured: these are lines of {"; ".join(devices)}: a table is of one of them')
    genes_of = _read_index(folder, loaded.sha256)
    pages = [folder / name for name in genes_of if sidecar(folder / name).is_file()]
    artifacts = [Artifact(page, read_meta(page)) for page in pages]
    values: dict[Genes, list[float]] = defaultdict(list)
    for one, artifact in zip(measurements, measured_files(measurements, artifacts), strict=True):
        values[supernet.space.canonical(genes_of[artifact.path.name])].append(one.p50)
    measured = {genes: statistics.median(ms) for genes, ms in values.items()}
    fitted, checked = choose_nets(supernet.space, nets, check)
    if others := measured.keys() - {*fitted, *checked}:
        raise UserError(
            f'--measured: {len(others)} of these nets are not among those of --nets {nets} and --check {check}: give '
            'the numbers of the command that wrote the pages'
        )
    needed = {supernet.space.canonical(genes) for genes in fitted[:2]} - measured.keys()
    if missing := [name for name, genes in genes_of.items() if supernet.space.canonical(genes) in needed]:
        raise UserError(
            f'--measured: {" and ".join(missing)} must be measured, too: the table is fitted between the smallest '
            'and the largest net'
        )
    first = measurements[0]
    table = make_table(
        supernet,
        TARGET.name,
        first.threads,
        dict(device=first.device, browser=first.browser, backend=first.backend),
        {},
        {genes: measured[genes] for genes in fitted if genes in measured},
        {genes: measured[genes] for genes in checked if genes in measured},
    )
    write_table(table, out)
    return table


def _read_index(folder: Path, sha256: str) -> dict[str, Genes]:
    """Return the genes of each page by its name."""
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f'--browser {folder} has no {INDEX}: without --measured, this command writes the nets')
    try:
        content = json.loads(path.read_bytes())
        nets = {Path(name).name: tuple(genes) for name, genes in content['nets'].items()}
        is_other = content['sha256'] != sha256
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{path} is damaged: `mnv4 search profile --browser` writes it anew in another folder'
        ) from error
    if is_other:
        raise UserError(f'--browser {folder} has nets of another supernet: name another folder')
    return nets
