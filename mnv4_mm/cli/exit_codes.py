"""Exit codes: a user's mistake becomes one line on stderr."""

import os
import sys
import time
import traceback
from collections.abc import Callable

from mnv4_mm.errors import UserError

# Seconds within which a launcher ends the other processes of a machine after the first has ended.
LAUNCHER_TIMEOUT = 10
# If the import of one of these packages fails, the environment is broken, not the code.
REQUIRED = (
    'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'numpy', 'cv2', 'rich', 'PIL', 'mnv4_mm', 'faster_coco_eval',
    'prettytable', 'matplotlib', 'safetensors', 'huggingface_hub', 'timm', 'defusedxml', 'filelock', 'jinja2',
    'pyarrow', 'pycocotools', 'scipy', 'tensorboard', 'torchvision', 'yaml',
)  # fmt: skip


def run(call: Callable[[], int | None]) -> int:
    """Run a command.

    If the environment variable ``MNV4_DEBUG`` is set, the traceback of a ``UserError`` is printed, too.

    Args:
        call: Function that does the work and returns an exit code, or None for 0.

    Returns:
        The exit code: that of ``call``; 1 if the output is piped to a process that has ended; 2 for a ``UserError``, an
        ``OSError`` about a file, or the failed import of a required package; or 130 for Ctrl-C.

    Raises:
        Exception: Any other exception of ``call`` is passed on.
    """
    try:
        return call() or 0
    except UserError as error:
        if os.environ.get('MNV4_DEBUG'):
            traceback.print_exception(error)
        return _mistake(str(error))
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        return _mistake(f'{error.filename}: {error.strerror}')
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        return 130
    except ImportError as error:
        if (error.name or '').split('.')[0] not in REQUIRED:
            raise
        return _mistake(
            f'{error} in {sys.executable}: activate the environment that `make` built (`. .venv/bin/activate`), '
            'install `mnv4_mm[train]` and OpenMMLab, or run `mnv4 env`, which lists what is missing'
        )


def _mistake(text: str) -> int:
    """Print a user's mistake, and return the exit code. If all processes of a launcher make it, the first prints it."""
    if os.environ.get('LOCAL_RANK', '0') != '0':
        try:
            # Once this process ends, the launcher ends the first one, too, perhaps before it has printed.
            time.sleep(LAUNCHER_TIMEOUT)
        except KeyboardInterrupt:
            return 130
    # If this process has waited and the launcher has not ended it, only this process has made the mistake.
    print(f'error: {text}', file=sys.stderr)
    return 2
