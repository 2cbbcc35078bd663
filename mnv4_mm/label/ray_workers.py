"""Do the parts of a job on the machines of a Ray cluster, by Ray Data."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from mnv4_mm.errors import UserError
from mnv4_mm.label.job import Job
from mnv4_mm.label.table import Tally
from mnv4_mm.label.workers import Outcome


class PartMaker:
    """Makes parts of a job in an actor of Ray Data, which loads the exported file once.

    Args:
        folder: Folder of the job, at the same path on every machine.
    """

    def __init__(self, folder: str) -> None:
        self.job = Job(folder)
        self.labeller = self.job.labeller()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = int(row['part'])
        # A part whose actor died after writing it is not made again.
        done = self.job.tally(part)
        rows, errors = done or self.job.make(part, self.labeller)
        return dict(part=part, rows=rows, errors=errors)


def make_parts(folder: str, parts: Iterable[int], count: int | None, address: str) -> Iterator[Outcome]:
    """Make parts in actors, and yield their outcomes as they end. Ray replaces actors that die.

    Args:
        folder: Folder of the job, at the same path on every machine.
        parts: The parts.
        count: Number of actors, with a CPU core each; all cores of the cluster if None.
        address: ``auto`` for the running cluster, ``local`` for a new one on this machine, or an address.

    Raises:
        UserError: Ray cannot be reached, or a part cannot be made.
    """
    with _connected(address) as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        parts = list(parts)
        count = count or max(1, int(ray.cluster_resources().get('CPU', 1)))
        # A block per part: outcomes arrive one by one, and a machine that fails loses only the parts it was making.
        data = ray.data.from_items([dict(part=part) for part in parts], override_num_blocks=len(parts))
        done = data.map(
            PartMaker,
            fn_constructor_args=(folder,),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(parts))),
            num_cpus=1,
        )
        try:
            for row in done.iter_rows():
                yield Outcome(row['part'], Tally(row['rows'], row['errors']))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    # Read when a cluster starts: no reports to Ray's authors.
    with mock.patch.dict(os.environ, RAY_USAGE_STATS_ENABLED='0'):
        import ray
        import ray.data

        options: dict[str, Any] = dict(include_dashboard=False) if address == 'local' else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f'--ray {address}: {" ".join(str(error).split())[:200]}') from error
        try:
            yield ray
        finally:
            ray.shutdown()
