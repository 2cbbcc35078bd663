"""Make the parts of a job on the machines of a Ray cluster with Ray Data."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from mnv4_mm.errors import UserError
from mnv4_mm.label.job import Job
from mnv4_mm.label.labeller import Labeller
from mnv4_mm.label.table import Tally
from mnv4_mm.label.workers import ATTEMPTS, CRASHED, Outcome, describe
from mnv4_mm.quiet import errors_only


class PartMaker:
    """Makes parts of a job in an actor of Ray Data, which loads the exported file once.

    A call takes a row with the number of a ``part``, and returns a row with ``part``, ``rows`` (-1 if the part has
    failed), ``errors``, ``reason`` (of the failure, else empty) and ``is_fatal`` (True if the whole job must stop).
    Exceptions are returned in the row and not raised, because Ray would then repeat the part for ever, or print
    hundreds of lines.

    Args:
        folder: Folder of the job, at the same path on every machine.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.loaded: tuple[Job, Labeller] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = int(row['part'])
        try:
            if self.loaded is None:
                job = Job(self.folder)
                self.loaded = job, job.labeller()
            tally, reason = self._make(part, *self.loaded)
        except UserError as error:
            return dict(part=part, rows=-1, errors=0, reason=str(error), is_fatal=True)
        except OSError as error:
            text = f'{self.folder} cannot be written: {error.strerror or error}'
            return dict(part=part, rows=-1, errors=0, reason=text, is_fatal=True)
        except Exception as error:  # one part must not stop the others
            tally, reason = None, describe(error)
        rows, errors = tally or (-1, 0)
        return dict(part=part, rows=rows, errors=errors, reason=reason, is_fatal=False)

    @staticmethod
    def _make(part: int, job: Job, labeller: Labeller) -> tuple[Tally | None, str]:
        # A part whose actor died after writing it is not made again.
        if done := job.tally(part):
            return done, ''
        if job.begin(part) > ATTEMPTS:
            return None, CRASHED
        return job.make(part, labeller), ''


def make_parts(folder: str, parts: Iterable[int], count: int | None, address: str) -> Iterator[Outcome]:
    """Make parts in Ray actors, and yield the outcome of each part as soon as it ends.

    Ray replaces actors that die. A part whose actor dies is tried again, up to ``ATTEMPTS`` times in total.

    Args:
        folder: Folder of the job, at the same path on every machine.
        parts: Numbers of the parts; at least one.
        count: Number of actors, with a CPU core each. If None, an actor for each core of the cluster.
        address: ``auto`` for the running cluster, ``local`` for a new one on this machine, or ``HOST:PORT``.

    Raises:
        UserError: Ray cannot be reached, the exported file cannot be loaded, or results cannot be written.
    """
    with _connected(address) as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        parts = list(parts)
        count = count or max(1, int(ray.cluster_resources().get('CPU', 1)))
        # A block per part: outcomes arrive one by one, and a machine that fails loses only its unfinished parts.
        data = ray.data.from_items([dict(part=part) for part in parts], override_num_blocks=len(parts))
        done = data.map(
            PartMaker,
            fn_constructor_args=(folder,),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(parts))),
            num_cpus=1,
        )
        try:
            for row in done.iter_rows():
                if row['is_fatal']:
                    raise UserError(row['reason'])
                tally = Tally(row['rows'], row['errors']) if row['rows'] >= 0 else None
                yield Outcome(row['part'], tally, row['reason'])
        except ray.exceptions.RayError as error:
            raise UserError(f'--ray {address} failed: {" ".join(str(error).split())[-200:]}') from error


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    # Read when a cluster starts: no reports to Ray's authors.
    with mock.patch.dict(os.environ, RAY_USAGE_STATS_ENABLED='0'):
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise UserError(f'--ray needs {error.name}: pip install "mnv4_mm[ray]"') from error
        options: dict[str, Any] = dict(include_dashboard=False) if address == 'local' else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            if 'Could not find any running Ray instance' in str(error):
                raise UserError(f'--ray {address}: no cluster runs here; `ray start --head` starts one') from error
            # Ray uses a token only if this variable is set, and does not say that a missing token was the reason.
            is_unset = address != 'local' and 'RAY_AUTH_MODE' not in os.environ
            hint = ' (if the cluster requires a token, set RAY_AUTH_MODE=token)' if is_unset else ''
            raise UserError(f'--ray {address}: {" ".join(str(error).split())[:200]}{hint}') from error
        try:
            with errors_only('ray.data'):
                yield ray
        finally:
            ray.shutdown()
