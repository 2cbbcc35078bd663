"""Make the runs of a protocol that have no record yet. Any number of processes and machines may share the work."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mnv4_mm.errors import UserError
from mnv4_mm.paths import make_output_folder
from mnv4_mm.transfer.claims import claimed
from mnv4_mm.transfer.protocol import Protocol, Run
from mnv4_mm.transfer.records import Record, append_record, latest, read_records
from mnv4_mm.transfer.run import Job

RECORDS = 'records.jsonl'
DRY_RECORDS = 'dry.jsonl'


def transfer(
    protocol: Protocol,
    runs: Sequence[Run],
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

    A run that fails leaves a record with the reason, and does not stop the others.

    Args:
        protocol: The protocol.
        runs: Those of its runs to make.
        data: Folder of the data set; None if the configs know it.
        out: Folder of the records, which processes that share the work share.
        weights_dir: See ``Job``.
        workers: Number of runs at the same time. The processor's cores are shared out evenly.
        retry: Repeat runs whose record is a failure.
        keep: Keep checkpoints and logs of runs that have succeeded.
        dry: See ``Job``. The records go to ``dry.jsonl``, and existing ones are made again.
        log: Takes a line about each run.

    Returns:
        The file of records, ``<out>/records.jsonl``.

    Raises:
        UserError: The folder cannot be written.
    """
    folder = make_output_folder('--out', out)
    records = folder / (DRY_RECORDS if dry else RECORDS)
    if dry:
        records.unlink(missing_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, 'sched_getaffinity') else 1

    processes: set[subprocess.Popen] = set()
    stopped = threading.Event()

    def work(run: Run) -> None:
        with claimed(folder / 'claims', run.name) as is_mine:
            # Read anew: another process may have made it since.
            if not is_mine or not remaining(records, [run], retry):
                return
            work_dir = folder / 'runs' / run.name
            job = Job(
                protocol=str(protocol.path),
                run=run,
                data=data,
                work_dir=str(work_dir),
                weights_dir=weights_dir,
                record=str(work_dir / 'record.json'),
                dry=dry,
            )
            record = run_job(job, threads, processes)
            if stopped.is_set():
                return
            append_record(records, record)
            if 'error' not in record and not keep:
                shutil.rmtree(work_dir)
            log(_line(run, record))

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(work, run) for run in remaining(records, runs, retry)]:
                future.result()
        except BaseException:  # Ctrl-C, or the records cannot be written
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(processes):
                process.kill()
            raise
    return records


def remaining(records: Path, runs: Sequence[Run], retry: bool = False) -> list[Run]:
    """Return the runs without a record; with ``retry``, also those that have failed."""
    done = latest(read_records(records)) if records.is_file() else {}
    return [run for run in runs if run not in done or (retry and 'error' in done[run])]


def run_job(job: Job, threads: int, processes: set[subprocess.Popen] | None = None) -> Record:
    """Run a job in a process and return its record: that of a failure if the process dies.

    Args:
        job: The job. What an earlier attempt has left in its folder is removed.
        threads: Threads of the process.
        processes: Holds the process while it runs.
    """
    processes = set() if processes is None else processes
    work_dir = Path(job.work_dir)
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    log = work_dir / 'run.log'
    with log.open('w') as output:
        # Its input stays open: the end of it tells the process that this one has died.
        process = subprocess.Popen(
            [sys.executable, '-m', 'mnv4_mm.transfer.run'],
            stdin=subprocess.PIPE,
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for this process, which then kills the other
        )
        processes.add(process)
        with process:
            assert process.stdin is not None
            process.stdin.write(job.to_json() + '\n')
            process.stdin.flush()
            code = process.wait()
        processes.discard(process)
    if Path(job.record).is_file():
        return json.loads(Path(job.record).read_text())
    lines = log.read_text(errors='replace').strip().splitlines()
    reason = lines[-1][:300] if lines and code > 0 else 'killed: out of memory?'
    error = f'exit code {code}: {reason} (log: {work_dir}/run.log)'
    return {'protocol': Path(job.protocol).stem, **job.run._asdict(), 'error': error}


def _line(run: Run, record: Record) -> str:
    if 'error' in record:
        return f'{run.name}: failed: {record["error"]}'
    latency = f', {record["latency_ms"]} ms' if record['latency_ms'] else ''
    return f'{run.name}: {record["metric"]} {record["score"]:.4f}, {record["minutes"]:.1f} min{latency}'


def submit(
    protocol: Protocol,
    runs: Sequence[Run],
    *,
    out: str,
    workers: int,
    log: Callable[[str], object] = print,
    **options: Any,
) -> None:
    """Let a SLURM cluster make the runs: ``workers`` jobs that share the folder ``out``.

    Raises:
        UserError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError('--launcher slurm needs submitit: pip install submitit') from error
    folder = make_output_folder('--out', out)
    executor = submitit.AutoExecutor(folder=folder / 'slurm')
    executor.update_parameters(name=f'transfer-{protocol.name}', timeout_min=24 * 60)
    jobs = [executor.submit(transfer, protocol, runs, out=out, **options) for _ in range(workers)]
    log(f'submitted: {", ".join(job.job_id for job in jobs)}; records go to {folder / RECORDS}')
