"""Progress of training: a progress bar on a terminal, and images per second in every log line."""

import logging
import sys

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.progress import BarColumn, Progress, TextColumn


@HOOKS.register_module()
class ProgressHook(Hook):
    """Hook that logs the throughput of training and, on a terminal, shows a progress bar.

    The throughput is the number of images in the batches of all processes, divided by the mean time of the last
    ``window`` steps. It is added to mmengine's scalars as ``train/img_s``, in images per second, and so appears in log
    lines and TensorBoard.

    If the standard output of the main process is a terminal, a progress bar shows epoch or iteration, remaining time,
    loss and throughput. It replaces the log lines of training on the terminal. The log file still gets these lines.

    Args:
        window: Number of steps over which step time and loss are averaged.
    """

    priority = 'NORMAL'  # after IterTimerHook, which is registered earlier; before LoggerHook

    def __init__(self, window: int = 20) -> None:
        self.window = window
        self._bar: Progress | None = None
        self._redirected: list[tuple[logging.StreamHandler, object]] = []

    def before_train(self, runner: Runner) -> None:
        if not (is_main_process() and sys.stdout.isatty()):
            return
        self._bar = Progress(
            TextColumn('{task.fields[done]}'),
            BarColumn(),
            TextColumn(
                '{task.percentage:>3.0f}%  left {task.fields[eta]}  loss {task.fields[loss]}  {task.fields[speed]}'
            ),
        )
        self._task = self._bar.add_task(
            '', total=runner.max_iters, completed=runner.iter, done='-', eta='-', loss='-', speed=''
        )
        self._bar.start()
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._redirected.append((handler, handler.stream))
                handler.setStream(sys.stdout)  # replaced by rich: prints above the live line
                handler.addFilter(_is_not_training_log)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: dict | None = None) -> None:
        scalars = runner.message_hub.log_scalars
        if 'train/time' not in scalars:
            return  # IterTimerHook measures from the second step on
        images = len(data_batch['inputs']) * get_world_size()
        runner.message_hub.update_scalar('train/img_s', images / scalars['train/time'].mean(self.window))
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=runner.iter + 1,
                done=f'epoch {runner.epoch + 1}/{runner.max_epochs}'
                if isinstance(runner.train_loop, EpochBasedTrainLoop)
                else f'iteration {runner.iter + 1}/{runner.max_iters}',
                eta=_format_duration(runner.message_hub.get_info('eta', 0)),
                loss=f'{scalars["train/loss"].mean(self.window):.3f}' if 'train/loss' in scalars else '-',
                speed=f'{scalars["train/img_s"].current():.0f} img/s',
            )

    def after_train(self, runner: Runner) -> None:
        self.close()

    def close(self) -> None:
        """Stop the progress bar and restore the streams of the log handlers. A second call has no effect."""
        if self._bar is None:
            return
        self._bar.stop()
        for handler, stream in self._redirected:
            handler.removeFilter(_is_not_training_log)
            handler.setStream(stream)
        self._bar, self._redirected = None, []


def _is_not_training_log(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(('Epoch(train)', 'Iter(train)'))


def _format_duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f'{hours}:{minute:02}:{second:02}' if hours else f'{minute}:{second:02}'
