"""What every tool does with its one function: run it, and turn a user's mistake into one line and exit code 2."""

import argparse
import ast
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# Seconds after which a launcher has ended the other processes of a machine, when the first has ended.
PATIENCE = 10
# Distributions whose absence means that the environment, not the code, is broken.
NEEDED = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'numpy', 'cv2', 'mnv4_mm')


def run(call: Callable[[], Any]) -> int:
    """Runs ``call``, which does the heavy imports itself, and returns the exit code."""
    try:
        from mnv4_mm.errors import UserError
    except ImportError as error:
        return _broken_environment(error)
    try:
        call()
    except UserError as error:
        # From a worker of a data loader it comes with the traceback there.
        return _mistake(str(error).rpartition('UserError: ')[2].strip())
    except OSError as error:
        if error.filename is None:
            raise
        return _mistake(f'{error.filename}: {error.strerror}')
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        return 130
    except ImportError as error:
        if (error.name or '').split('.')[0] not in NEEDED:
            raise
        return _broken_environment(error)
    return 0


def _mistake(text: str) -> int:
    """Prints a user's mistake. Of a launcher's processes all meet it: the first says it, and ends them all."""
    if os.environ.get('LOCAL_RANK', '0') != '0':
        try:
            time.sleep(PATIENCE)  # who ended earlier would have the first one ended before it has spoken
        except KeyboardInterrupt:
            return 130
    # Who is still here has met it alone.
    print(f'error: {text}', file=sys.stderr)
    return 2


def _broken_environment(error: ImportError) -> int:
    print(
        f'error: {error} in {sys.executable}: activate the environment that `make` built '
        '(`. .venv/bin/activate`), or ask `python tools/check_env.py` what is missing',
        file=sys.stderr,
    )
    return 2


class CfgOptions(argparse.Action):
    """``key=value`` pairs into a dict; a value is a Python literal, or else a string.

    mmengine's DictAction does as much, but importing mmengine to print ``--help`` takes seconds.
    """

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for pair in values:
            key, equals, text = pair.partition('=')
            if not (equals and key):
                parser.error(f'--cfg-options takes KEY=VALUE, got {pair!r}')
            try:
                options[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                options[key] = {'true': True, 'false': False, 'none': None}.get(text.lower(), text)
        setattr(namespace, self.dest, options)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that change a config, the same for training and testing."""
    parser.add_argument('--backbone', metavar='NAME', help='another backbone, e.g. mnv4_conv_l')
    parser.add_argument(
        '--data', metavar='DIR', help='your data set: COCO layout, or pictures and masks (docs/own_data.md)'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', help='e.g. train_cfg.max_epochs=3'
    )


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """How several processes are started, the same for training and testing."""
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='what starts several processes (docs/scaling.md)',
    )
    # Passed by torch.distributed.launch, which sets the environment variable too; that is the one read.
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)


def add_inference_argument(parser: argparse.ArgumentParser) -> None:
    """How a segmenter sees a picture, the same for testing and inference."""
    parser.add_argument(
        '--inference',
        choices=('whole', 'slide'),
        help="segmentation: whole pictures, or overlapping windows of a training crop's size (default: the config's)",
    )
