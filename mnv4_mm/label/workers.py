"""Do the parts of a job in processes of this machine."""

import multiprocessing
import signal
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from mnv4_mm.errors import UserError
from mnv4_mm.label.job import Job
from mnv4_mm.label.table import Tally

ATTEMPTS = 3  # times that a part may end its process


class Worker:
    """A process that makes one part after the other.

    Args:
        folder: Folder of the job.
    """

    def __init__(self, folder: str) -> None:
        # A new interpreter: runtimes start threads, which a copy of this process would lack.
        context = multiprocessing.get_context('spawn')
        self.connection, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(folder, end), daemon=True)
        self.process.start()
        end.close()  # or the death of the process would not end the connection
        self.part: int | None = None

    def start(self, part: int) -> None:
        self.part = part
        try:
            self.connection.send(part)
        except BrokenPipeError:  # it has died; `receive` will say so
            return

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


class Outcome(NamedTuple):
    """Outcome of a part.

    Attributes:
        part: The part.
        tally: Its rows; None if it could not be made.
    """

    part: int
    tally: Tally | None


def make_parts(folder: str, parts: Iterable[int], count: int) -> Iterator[Outcome]:
    """Make parts in processes, and yield their outcomes as they end.

    A part whose process dies, perhaps for lack of memory, is tried again in a new one.

    Args:
        folder: Folder of the job.
        parts: The parts.
        count: Number of processes.

    Raises:
        UserError: The exported file cannot be loaded, or results cannot be written.
    """
    pending, deaths = deque(parts), Counter[int]()
    workers = [Worker(folder) for _ in range(min(count, len(pending)))]
    try:
        for worker in workers:
            worker.start(pending.popleft())
        while busy := {worker.connection: worker for worker in workers if worker.part is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                part = worker.part
                assert part is not None
                worker.part = None
                try:
                    answer = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    deaths[part] += 1
                    worker.stop()
                    workers[workers.index(worker)] = worker = Worker(folder)
                    if deaths[part] < ATTEMPTS:
                        pending.append(part)
                    else:
                        yield Outcome(part, None)
                else:
                    if isinstance(answer, BaseException):
                        raise answer
                    yield Outcome(part, answer)
                if pending:
                    worker.start(pending.popleft())
    finally:
        for worker in workers:
            worker.stop()


def _serve(folder: str, connection: Connection) -> None:
    """Make the parts that arrive, and send back their tallies or an exception, until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one stops the others
    try:
        job = Job(folder)
        labeller = job.labeller()
        while True:
            connection.send(job.make(connection.recv(), labeller))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except OSError as error:
        connection.send(UserError(f'{folder} cannot be written: {error.strerror or error}'))
    except UserError as error:
        connection.send(error)
    except Exception as error:  # a fault of the runtime or of this package; not every exception can be sent
        connection.send(RuntimeError(''.join(traceback.format_exception(error))))
