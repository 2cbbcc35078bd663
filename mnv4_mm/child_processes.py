"""Python modules that run as processes of their own, and end when the process that started them ends."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

from mnv4_mm.errors import UserError


class Children:
    """Child processes that can be ended together. Several threads may each run one.

    They do not get the Ctrl-C that is pressed in the terminal of this process, so it must call ``kill``.
    """

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.is_stopped = False

    def run(self, module: str, line: str, log: Path, threads: int) -> int:
        """Run a module in a process of its own, and return its exit code.

        The module gets its task by ``run_task``.

        Args:
            module: Name of the module, for ``python -m``.
            line: Its task, one line of text.
            log: File for what the process prints.
            threads: Number of threads of the process.

        Returns:
            The exit code, which is negative if the process was killed, also by ``kill``.
        """
        with log.open('w') as output:
            with self._lock:
                if self.is_stopped:
                    return -1
                # Stdin stays open: when it is closed, because this process has died, the child exits.
                process = subprocess.Popen(  # noqa: S603
                    [sys.executable, '-m', module],
                    stdin=subprocess.PIPE,
                    text=True,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, 'OMP_NUM_THREADS': str(threads)},
                    start_new_session=True,
                )
                self._processes.add(process)
            with process:
                assert process.stdin is not None
                process.stdin.write(line + '\n')
                process.stdin.flush()
                code = process.wait()
            self._processes.discard(process)
        return code

    def kill(self) -> None:
        """Kill all child processes. No other one can be started from then on."""
        with self._lock:
            self.is_stopped = True
            for process in list(self._processes):
                process.kill()


def failure_of(code: int, log: Path) -> str:
    """Return why a child has failed: its exit code, the last line that it has printed, and where the others are."""
    lines = log.read_text(errors='replace').strip().splitlines()
    printed = lines[-1][:300] if lines else 'it has printed nothing'
    reason = 'killed: out of memory?' if code < 0 else printed
    return f'exit code {code}: {reason} (log: {log})'


def run_task(function: Callable[[str], object]) -> None:
    """Call a function with the line that ``Children.run`` has sent. This process exits when its parent ends.

    A ``UserError`` ends the process with exit code 2 and its message as the last line.
    """
    line = sys.stdin.readline()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        function(line)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def end_with_parent() -> None:
    """Let this process of ``multiprocessing`` exit when its parent process has ended, even if that was killed.

    Without it, processes of a ``ProcessPoolExecutor`` whose parent was killed wait for tasks for ever: they hold both
    ends of the pipe that they read from.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(3)


def _exit_with_parent() -> None:
    # The read returns when the parent process has ended. sys.stdin.read() would hold the lock of sys.stdin: forked
    # workers of data loaders would inherit the locked lock and wait for it for ever when they close sys.stdin.
    os.read(sys.stdin.fileno(), 1)
    os._exit(3)
