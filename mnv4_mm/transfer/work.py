"""Make the runs of a protocol that have no record yet. Any number of processes and machines may share the work."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.child_processes import Children, failure_of
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.json_lines import append_line, as_line, locked
from mnv4_mm.paths import make_output_folder
from mnv4_mm.processors import cores
from mnv4_mm.transfer.claims import claimed
from mnv4_mm.transfer.job import Job
from mnv4_mm.transfer.protocol import Protocol, Run
from mnv4_mm.transfer.records import (
    Record,
    failure,
    latest,
    read_records,
    run_of,
)

RECORDS = 'records.jsonl'
DRY_RECORDS = 'dry.jsonl'


class Digests(NamedTuple):
    """Digests of the recipe and the data of a head. Records with different digests are not comparable.

    ``data`` is None if it is not known.
    """

    recipe: str
    data: str | None


def transfer(
    protocol: Protocol,
    runs: Sequence[Run],
    digests: Mapping[str, Digests],
    *,
    data: str | None,
    out: str,
    weights_dir: str | None = None,
    workers: int = 1,
    retry: bool = False,
    keep: bool = False,
    dry: bool = False,
    log: Callable[[str], object] = print,
) -> Path:
    """Make the runs that have no record yet, each in a process of its own.

    A run that fails gets a record with the reason and does not stop the others. A run that another process is making
    is skipped.

    Args:
        protocol: The protocol.
        runs: Runs of the protocol to make.
        digests: Digests by head.
        data: Folder of the data set, with its splits already joined; None to use the data of the configs.
        out: Folder of the records; it is shared by all processes that share the work.
        weights_dir: See ``Job``.
        workers: Number of runs at the same time. The CPU cores are divided evenly among them.
        retry: Repeat runs that have failed.
        keep: Keep checkpoints and logs of runs that have succeeded. Those of failed runs are kept until
            the run is repeated.
        dry: See ``Job``. The records go to ``dry.jsonl``, which is started anew.
        log: Function that prints a line about each run. It is called from the threads of the workers.

    Returns:
        The file of records, ``<out>/records.jsonl``, or ``<out>/dry.jsonl`` with ``dry``.

    Raises:
        UserError: The folder cannot be written, or has records of another recipe or other data.
    """
    folder = make_output_folder('--out', out)
    records = folder / (DRY_RECORDS if dry else RECORDS)
    if dry:
        records.unlink(missing_ok=True)
    check_same(records, protocol, digests)
    threads = max(1, cores() // workers)
    children = Children()

    def work(run: Run) -> None:
        with claimed(folder / ('claims-dry' if dry else 'claims'), run.name) as claim:
            if claim is None:
                log(f'{run.name}: being made by another process')
                return
            # Another process may have made the run since the list of runs was read.
            if not remaining(records, [run], retry):
                return
            digest = digests[run.head]
            assert digest.data is not None
            work_dir = folder / ('dry' if dry else 'runs') / run.name  # a dry run must not replace a kept one
            job = Job(
                protocol=str(protocol.path),
                run=run,
                recipe=digest.recipe,
                data_digest=digest.data,
                data=data,
                work_dir=str(work_dir),
                weights_dir=weights_dir,
                record=str(work_dir / 'record.json'),
                lock=str(folder / '.latency.lock'),
                dry=dry,
            )
            try:
                record = run_job(job, threads, children)
            except OSError as error:
                record = failure(job, f'{error.filename or work_dir}: {error.strerror or error}')
            if children.is_stopped or not claim.is_held():
                return
            append_line(records, record)
            if 'error' not in record and not keep:
                shutil.rmtree(work_dir, ignore_errors=True)
            log(_line(run, record, dry))

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(work, run) for run in remaining(records, runs, retry)]:
                future.result()
        except BaseException:  # Ctrl-C, or the records cannot be written
            pool.shutdown(wait=False, cancel_futures=True)
            children.kill()
            raise
    return records


def measure_latency(
    protocol: Protocol,
    runs: Sequence[Run],
    digests: Mapping[str, Digests],
    *,
    data: str | None,
    out: str,
    log: Callable[[str], object] = print,
) -> Path:
    """Measure the latency of recorded nets on this machine and write it into their records.

    This is useful if the runs were made on machines that were busy, or whose latency is of no interest. Each net is
    trained in a dry run (see ``Job``), exported and measured. The records of the dry runs replace ``dry.jsonl``. In the
    records of the runs, latency, input size and MACs are replaced, and ``latency_machine`` describes this machine.

    Args:
        protocol: The protocol.
        runs: Runs of the protocol whose nets are measured.
        digests: Digests by head.
        data: See ``transfer``.
        out: See ``transfer``.
        log: Function that prints a line about each net.

    Returns:
        The file of records, ``<out>/records.jsonl``.

    Raises:
        UserError: None of the runs has a record of success, the records are of another recipe or other data, or a net
            could not be exported or measured. No record of ``records.jsonl`` is changed then.
    """
    path = Path(out) / RECORDS
    check_same(path, protocol, digests)
    done = by_run(read_records(path)) if path.is_file() else {}
    nets: dict[tuple, Run] = {}
    for run in runs:
        if run in done and 'error' not in done[run]:
            nets.setdefault(_deployed_net(run), run)
    if not nets:
        raise UserError(f'{path} has no records of runs that succeeded')
    dry = transfer(protocol, list(nets.values()), digests, data=data, out=out, dry=True, log=log)
    measured = {_deployed_net(run_of(record)): record for record in read_records(dry)}
    for net, run in nets.items():
        record = measured.get(net, {})
        if record.get('latency_ms') is None:
            reason = record.get('error') or record.get('export_error') or 'no record'
            raise UserError(f'{run.name} could not be measured: {reason}; no record has been changed')
    with locked(path):
        records = read_records(path)
        for record in records:
            new = measured.get(_deployed_net(run_of(record)))
            if new and 'error' not in record:
                record.update({key: new[key] for key in ('latency_ms', 'size', 'macs')})
                record['latency_machine'] = {**new['machine'], 'date': new['date']}
                record.pop('export_error', None)
        write_whole(path, ''.join(map(as_line, records)))
    return path


def _deployed_net(run: Run) -> tuple[str, str, bool]:
    """Return the attributes of a run on which its latency depends."""
    return run.head, run.net, run.control == 'zeroed'


def check_same(records: Path, protocol: Protocol, digests: Mapping[str, Digests]) -> None:
    """Check that existing records are of a protocol and have the given recipes and data: their runs are not made again.

    Args:
        records: The file of records; it need not exist.
        protocol: The protocol.
        digests: Digests by head. The digests of records of other heads are not checked.

    Raises:
        UserError: A record has another protocol, another recipe or other data.
    """
    for record in read_records(records) if records.is_file() else ():
        if record.get('protocol', protocol.name) != protocol.name:
            raise UserError(f'{records} has records of {record["protocol"]}: name another folder by --out')
        expected = digests.get(record['head'])
        for key in Digests._fields if expected else ():
            value = getattr(expected, key)
            if value is not None and record[key] != value:
                raise UserError(
                    f'{records} has records of {record["head"]} with another {key} ({record[key]}, now {value}): name '
                    'another folder by --out'
                )


def remaining(records: Path, runs: Sequence[Run], retry: bool = False) -> list[Run]:
    """Return the runs that are still to be made, in the given order.

    Args:
        records: The file of records; it need not exist.
        runs: Runs to select from.
        retry: Also include runs whose last record is that of a failure.
    """
    done = by_run(read_records(records)) if records.is_file() else {}
    return [run for run in runs if run not in done or (retry and 'error' in done[run])]


def by_run(records: Iterable[Record]) -> dict[Run, Record]:
    """Return the last record of each run, by run."""
    return {run_of(record): record for record in latest(records)}


def run_job(job: Job, threads: int, children: Children) -> Record:
    """Run a job in a process of its own.

    If ``Job.record`` already has the record of a successful attempt with the same run, recipe and data, that record is
    returned and nothing is run, except in a dry run. Otherwise the files of earlier attempts in ``Job.work_dir`` are
    removed first.

    Args:
        job: The job.
        threads: Number of threads of the process.
        children: The processes that are killed together with this one.

    Returns:
        The record that the process has written, or the record of a failure if the process died without writing one.
    """
    work_dir = Path(job.work_dir)
    if not job.dry and (record := _finished(job)):
        return record
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    log = work_dir / 'run.log'
    code = children.run('mnv4_mm.transfer.run', job.to_json(), log, threads)
    if Path(job.record).is_file():
        return json.loads(Path(job.record).read_text())
    return failure(job, failure_of(code, log))


def _finished(job: Job) -> Record | None:
    """Return the record of an earlier process that finished the run, but whose parent died before appending it."""
    path = Path(job.record)
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    same = 'error' not in record and (record['recipe'], record['data']) == (job.recipe, job.data_digest)
    return record if same and run_of(record) == job.run else None


def _line(run: Run, record: Record, dry: bool) -> str:
    if 'error' in record:
        return f'{run.name}: failed: {record["error"]}'
    latency = f', {record["latency_ms"]} ms' if record['latency_ms'] else ''
    if 'export_error' in record:
        latency = f', not exported: {record["export_error"]}'
    # The score of a dry run with four images would only mislead.
    result = 'trained and evaluated' if dry else f'{record["metric"]} {record["score"]:.4f}'
    return f'{run.name}: {result}, {record["minutes"]:.1f} min{latency}'


def check_slurm() -> None:
    """Check that jobs can be submitted to a cluster.

    Raises:
        UserError: submitit is not installed, or there is no SLURM.
    """
    if find_spec('submitit') is None:
        raise UserError('--launcher slurm needs submitit: pip install "mnv4_mm[slurm]"')
    if shutil.which('sbatch') is None:
        raise UserError('--launcher slurm: there is no sbatch here, with which jobs are submitted')


def submit(
    protocol: Protocol,
    runs: Sequence[Run],
    digests: Mapping[str, Digests],
    *,
    out: str,
    workers: int,
    parameters: Mapping[str, Any],
    log: Callable[[str], object] = print,
    **options: Any,
) -> None:
    """Submit ``workers`` SLURM jobs, which share the runs and the folder ``out``. By default, each has one GPU.

    Args:
        protocol: The protocol.
        runs: Runs of the protocol to make.
        digests: See ``transfer``.
        out: See ``transfer``.
        workers: Number of jobs.
        parameters: Parameters of sbatch that replace the defaults, such as ``partition``.
        log: Function that prints a line.
        **options: Further arguments of ``transfer``.

    Raises:
        UserError: There is no SLURM, a parameter is unknown, or ``out`` cannot be created.
    """
    import submitit

    folder = make_output_folder('--out', out)
    try:
        executor = submitit.SlurmExecutor(folder=folder / 'slurm')
    except RuntimeError as error:  # no sbatch
        raise UserError(f'--launcher slurm: {error}') from error
    values = dict(job_name=f'transfer-{protocol.name}', time=24 * 60, gpus_per_node=1, cpus_per_task=8)
    try:
        executor.update_parameters(**{**values, **parameters})
    except ValueError as error:
        raise UserError(f'--slurm: {" ".join(str(error).split())[:300]}') from error
    # If a job is cut off, its claim expires and a resubmitted job takes it over.
    protocol = replace(protocol, path=protocol.path.resolve())
    jobs = [
        executor.submit(transfer, protocol, runs, digests, out=str(folder.resolve()), **options) for _ in range(workers)
    ]
    log(f'submitted: {", ".join(job.job_id for job in jobs)}; records go to {folder / RECORDS}')
