"""Make the parts of a job in processes of this machine."""

import multiprocessing
import os
import signal
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from mnv4_mm.child_processes import end_with_parent
from mnv4_mm.errors import UserError
from mnv4_mm.label.job import Job
from mnv4_mm.label.table import Tally

ATTEMPTS = 3  # crashes after which a part, or the start of processes, is given up
CRASHED = 'its process crashed (out of memory?)'


class Outcome(NamedTuple):
    """Outcome of a part.

    Attributes:
        part: Number of the part.
        tally: Numbers of rows and errors of the part; None if the part has failed.
        reason: Why the part has failed; empty if it has not.
    """

    part: int
    tally: Tally | None
    reason: str = ''


class Worker:
    """A process that makes one part after the other.

    Args:
        folder: Folder of the job.

    Attributes:
        connection: Connection to the process, which sends answers as ``_serve`` describes.
        process: The process.
        is_ready: True once the process has loaded the exported file; set by ``make_parts``.
        part: Number of the part that the process is making; None if it is idle.
    """

    def __init__(self, folder: str) -> None:
        # spawn, not fork: threads of a runtime do not survive a fork.
        context = multiprocessing.get_context('spawn')
        self.connection, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(folder, end), daemon=True)
        self.process.start()
        end.close()  # otherwise recv() would not notice that the process died
        self.is_ready = False
        self.part: int | None = None

    def start(self, part: int) -> None:
        """Send the number of a part to the process, which makes the part.

        If the process has died, nothing is raised here: ``connection.recv()`` raises ``EOFError`` or
        ``ConnectionResetError`` afterwards.
        """
        self.part = part
        try:
            self.connection.send(part)
        except OSError:
            return

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def make_parts(folder: str, parts: Iterable[int], count: int) -> Iterator[Outcome]:
    """Make parts in processes, and yield the outcome of each part as soon as it ends.

    A part that fails, or whose process dies, is tried up to ``ATTEMPTS`` times in total.

    Args:
        folder: Folder of the job.
        parts: Numbers of the parts.
        count: Maximum number of processes. No more processes are started than there are parts.

    Raises:
        UserError: The exported file cannot be loaded, the processes crash while they load it, or results cannot be
            written.
    """
    pending, failures = deque(parts), Counter[int]()
    workers = [Worker(folder) for _ in range(min(count, len(pending)))]
    failed_starts = 0
    try:
        for worker in workers:
            worker.start(pending.popleft())
        while busy := {worker.connection: worker for worker in workers if worker.part is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                part, worker_was_ready = worker.part, worker.is_ready
                assert part is not None
                try:
                    answer = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    answer = CRASHED
                    worker.stop()
                    workers[workers.index(worker)] = worker = Worker(folder)
                    failed_starts = 0 if worker_was_ready else failed_starts + 1
                    if failed_starts == ATTEMPTS:
                        raise UserError('the processes crash while they load the file (out of memory?)') from None
                if isinstance(answer, UserError):
                    raise answer
                if answer is None:
                    worker.is_ready, failed_starts = True, 0
                    continue
                worker.part = None
                if isinstance(answer, Tally):
                    yield Outcome(part, answer)
                elif failures[part] + 1 < ATTEMPTS:
                    failures[part] += 1
                    pending.append(part)
                else:
                    yield Outcome(part, None, answer)
                if pending:
                    worker.start(pending.popleft())
    finally:
        for worker in workers:
            worker.stop()


def _serve(folder: str, connection: Connection) -> None:
    """Make the parts that arrive, and send back a tally or a reason for each.

    The first message is None, when the file has been loaded. A ``UserError`` is the last one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one stops the others
    end_with_parent()  # a part can take hours
    try:
        job = Job(folder)
        labeller = job.labeller()
        connection.send(None)
        while True:
            part = connection.recv()
            try:
                connection.send(job.make(part, labeller))
            except OSError as error:
                connection.send(UserError(f'{folder} cannot be written: {error.strerror or error}'))
                return
            except Exception as error:  # one part must not stop the others
                connection.send(describe(error))
    except UserError as error:
        connection.send(error)
    except (EOFError, OSError):  # the first process has ended
        return


def describe(error: BaseException) -> str:
    """Return the type and message of an exception, and the file and line that raised it, in one line."""
    text = ' '.join(str(error).split())[:200]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f'{type(error).__name__}: {text} ({os.path.basename(place.filename)}, line {place.lineno})'
