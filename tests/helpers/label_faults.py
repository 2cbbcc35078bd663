"""Workers of `mnv4 label` with a fault. They run in processes of their own, which import them by name."""

import os
from multiprocessing.connection import Connection

from mnv4_mm.label import workers
from mnv4_mm.label.job import Job
from mnv4_mm.label.labeller import Labeller
from mnv4_mm.label.table import Tally


def die_at_part_one(folder: str, connection: Connection) -> None:
    """Work, but end the process at part 1."""
    job = Job(folder)
    labeller = job.labeller()
    connection.send(None)
    try:
        while True:
            part = connection.recv()
            if part == 1:
                os._exit(9)
            connection.send(job.make(part, labeller))
    except EOFError:
        return


def die_at_once(folder: str, connection: Connection) -> None:
    """End the process before the file is loaded."""
    os._exit(9)


def raise_at_part_one(folder: str, connection: Connection) -> None:
    """Work, but part 1 raises."""
    real = Job.make

    def make(self: Job, part: int, labeller: Labeller) -> Tally:
        if part == 1:
            raise MemoryError('planted')
        return real(self, part, labeller)

    Job.make = make  # type: ignore[method-assign]
    workers._serve(folder, connection)


def fail_to_write(folder: str, connection: Connection) -> None:
    """Work, but the disk is full."""

    def no_space(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    Job.make = no_space  # type: ignore[assignment, method-assign]
    workers._serve(folder, connection)
