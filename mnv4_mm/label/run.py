"""Label the images of a source, and continue where an earlier run has stopped."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.label.source import WHAT, read_source
from mnv4_mm.paths import check_output_folder
from mnv4_mm.processors import cores
from mnv4_mm.runtime.meta import read_meta
from mnv4_mm.runtime.sessions import RUNTIMES
from mnv4_mm.runtime.sessions.base import missing_modules

if TYPE_CHECKING:
    from mnv4_mm.label.workers import Outcome

SECONDS = 10.0  # between two lines of progress
TIMEOUT = 1.5  # seconds to reach a Ray cluster
# A Ray cluster answers by gRPC, which is HTTP/2. Both sides begin with a frame of settings, here an empty one.
HTTP2_SETTINGS = b'\x04'
HTTP2_START = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + b'\x00\x00\x00' + HTTP2_SETTINGS + bytes(5)


class Labelled(NamedTuple):
    """Outcome of a run.

    Attributes:
        folder: Folder of the Parquet files, which can be read as one Parquet data set.
        rows: Number of rows: one for each image, frame, or entry that could not be read.
        errors: Number of rows with an error.
        failed: A line of text for each part that has failed: its number, its first and last entry, and the reason.
    """

    folder: Path
    rows: int
    errors: int
    failed: list[str]


def _check_arguments(
    file: str,
    source: str,
    *,
    out: str,
    workers: int | None,
    ray: str | None,
    score_thr: float | None,
    part: int,
    coco: str | None,
) -> None:
    """Check the arguments of ``label`` without listing the images. The arguments are those of ``label``.

    Raises:
        UserError: An argument or the exported file is invalid, or a package is missing.
    """
    missing = missing_modules(['pyarrow', 'filelock'])
    if missing:
        raise UserError(f'labelling needs {", ".join(missing)}: pip install "mnv4_mm[label]"')
    if ray is not None:
        _check_ray(ray)
    if workers is not None and workers < 1:
        raise UserError(f'--workers must be at least 1, got {workers}')
    if part < 1:
        raise UserError(f'--part must be at least 1, got {part}')
    if score_thr is not None and not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr must be in [0, 1], got {score_thr}')
    meta = read_meta(file)
    if meta.target not in RUNTIMES:
        raise UserError(f'{file} is for the runtime {meta.target!r}, which this version does not know')
    if reason := RUNTIMES[meta.target].absent() or RUNTIMES[meta.target].cannot_run():
        raise UserError(reason)
    if meta.task == 'segmentation':
        if score_thr is not None:
            raise UserError(f'--score-thr {score_thr} is for detectors; {file} is a segmenter')
        if missing_modules(['pycocotools']):
            raise UserError('run lengths of class maps need pycocotools: pip install "mnv4_mm[label]"')
    images = Path(source)
    if not images.exists():
        raise UserError(f'{source} does not exist: {WHAT}')
    folder = check_output_folder('--out', out).resolve()
    if images.is_dir() and folder.is_relative_to(images.resolve()):
        raise UserError(f'--out {out} is inside the folder of the images, {source}: name another one')
    if coco is not None:
        from mnv4_mm.label.coco import check_coco

        check_coco(Path(coco), folder)


def _check_ray(address: str) -> None:
    match = re.fullmatch(r'auto|local|(?P<host>[\w.-]+|\[[\da-fA-F:]+\]):(?P<port>\d{1,5})', address)
    if not match:
        raise UserError(f'--ray {address}: auto (the running cluster), local (a new one), or an address, HOST:PORT')
    if missing_modules(['ray']):
        raise UserError(f'--ray {address} needs ray: pip install "mnv4_mm[ray]"')
    if match['host']:
        # Ray itself waits for minutes.
        try:
            with socket.create_connection((match['host'].strip('[]'), int(match['port'])), TIMEOUT) as connection:
                is_cluster = os.environ.get('RAY_USE_TLS', '0').lower() in ('1', 'true') or _speaks_http2(connection)
        except (OSError, OverflowError) as error:
            raise UserError(f'--ray {address} cannot be reached: {error}') from error
        if not is_cluster:
            raise UserError(f"--ray {address}: no Ray cluster answers there (Ray's default port is 6379)")


def _speaks_http2(connection: socket.socket) -> bool:
    try:
        connection.settimeout(TIMEOUT)
        connection.sendall(HTTP2_START)
        return connection.recv(4)[3:] == HTTP2_SETTINGS
    except OSError:  # a timeout, or the other side has hung up
        return False


def label(
    file: str,
    source: str,
    *,
    out: str,
    workers: int | None = None,
    ray: str | None = None,
    score_thr: float | None = None,
    part: int = 256,
    coco: str | None = None,
    retry: bool = False,
    fast_jpeg: bool = False,
    log: Callable[[str], object] = print,
) -> Labelled:
    """Run an exported file over the images of a source, and write a Parquet row per image.

    To continue a run that was stopped, repeat the call: no image is skipped or labelled twice. An image that cannot be
    read has a row with the error. The processes import the main module, so a script that calls this function needs
    ``if __name__ == '__main__':``.

    Args:
        file: Exported file, of any runtime.
        source: A folder of images, a list of images, a tar file, a video and others, see ``source.read_source``.
        out: Folder of the results: a new one, or the folder of the same job to continue it. ``parts/*.parquet`` have
            the columns that ``table.schema_of`` describes.
        workers: Number of processes. If None, one per core of this machine or, with ``ray``, of the cluster.
        ray: Ray cluster to use: ``auto`` for the running one, ``local`` to start one on this machine, or ``HOST:PORT``.
            ``file``, ``source`` and ``out`` must have the same paths on all machines of the cluster. None for processes
            of this machine, without Ray.
        score_thr: Detection: boxes with lower scores are left out; the score threshold of the file if None.
        part: Number of images per part, the unit of work, which has a Parquet file. A tar file, a video, or a row group
            of a Parquet file always is a part of its own.
        coco: JSON file to which the results are also written in COCO's format, unless a part has failed. It must not be
            in ``out``, and replaces only a file of an earlier call. None: no JSON.
        retry: Repeat the parts that have images with errors.
        fast_jpeg: See ``runtime.predictor.Predictor``.
        log: Function that prints a line.

    Returns:
        The numbers of rows and errors, and the parts that have failed.

    Raises:
        UserError: An argument, the source or the exported file is invalid, or the folder cannot be used, e.g. because
            another process uses it. Finished parts are kept.
    """
    _check_arguments(file, source, out=out, workers=workers, ray=ray, score_thr=score_thr, part=part, coco=coco)
    from filelock import FileLock, Timeout

    from mnv4_mm.label.job import LOCK, check_folder, open_job

    folder = Path(out)
    check_folder(folder)
    entries = read_source(source)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            job = open_job(folder, file, source, entries, part=part, score_thr=score_thr, fast_jpeg=fast_jpeg)
            del entries  # hundreds of bytes per image
            done = job.done()
            for index in [index for index, tally in done.items() if retry and tally.errors]:
                job.path(index).unlink()
                del done[index]
            missing = [index for index in range(job.count) if index not in done]
            if done:
                log(f'{len(done)} of {job.count} parts are done: {sum(tally.rows for tally in done.values())} images')
            failed = []
            for outcome in _with_progress(_outcomes(out, missing, workers, ray), job.count, len(done), log):
                if outcome.tally is not None:
                    done[outcome.part] = outcome.tally
                    continue
                images = job.entries(outcome.part)
                failed.append(f'part {outcome.part} ({images[0].id} to {images[-1].id}): {outcome.reason}')
            job.clear()
            if coco is not None and not failed:
                from mnv4_mm.label.coco import write_coco

                write_coco(job, Path(coco))
            rows, errors = (sum(tally[i] for tally in done.values()) for i in (0, 1))
            return Labelled(job.folder / 'parts', rows, errors, failed)
    except Timeout:
        raise UserError(f'--out {out} is in use by another process') from None


def _outcomes(folder: str, parts: list[int], workers: int | None, ray: str | None) -> 'Iterable[Outcome]':
    if not parts:
        return []
    if ray is not None:
        from mnv4_mm.label import ray_workers

        return ray_workers.make_parts(os.path.abspath(folder), parts, workers, ray)
    from mnv4_mm.label.workers import make_parts

    return make_parts(folder, parts, workers or cores())


def _with_progress(
    outcomes: 'Iterable[Outcome]', count: int, before: int, log: Callable[[str], object]
) -> 'Iterator[Outcome]':
    """Yield outcomes, and print parts done, images a second, and the time left; on a terminal in one line.

    Args:
        outcomes: The outcomes.
        count: Number of parts of the job.
        before: How many of them an earlier run has made.
        log: Function that prints a line, where there is no terminal.
    """
    started = shown = time.monotonic()
    is_terminal, images = sys.stderr.isatty(), 0
    for parts, outcome in enumerate(outcomes, 1):
        images += outcome.tally.rows if outcome.tally else 0
        now = time.monotonic()
        left = count - before - parts
        if not left or now - shown > (1.0 if is_terminal else SECONDS):
            shown = now
            seconds = max(now - started, 1e-9)
            line = (
                f'part {before + parts} of {count}; images: {images}, {images / seconds:.0f} a second; '
                f'{timedelta(seconds=int(seconds / parts * left))} left'
            )
            if is_terminal:
                print(f'\r{line}\033[K', end='' if left else '\n', file=sys.stderr, flush=True)
            else:
                log(line)
        yield outcome
