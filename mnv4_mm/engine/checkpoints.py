"""Checkpoint hook that removes old files only after the new file is complete, and repeats interrupted validations."""

from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from mnv4_mm.files import PART_SUFFIX
from mnv4_mm.weights.checkpoint import write_text


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """``CheckpointHook`` of mmengine that keeps the last complete checkpoint if a run is killed or the disk is full.

    mmengine removes old checkpoints and the previous best checkpoint before it writes the new file. This hook removes
    them after the new file has been written. ``SafeRunner.save_checkpoint`` writes each file atomically.

    mmengine does not repeat an interrupted validation, so that a resumed run may select another best checkpoint. This
    hook records each finished validation in the last checkpoint, and repeats an interrupted validation on resuming. The
    best checkpoint does not change if a metric that selects it (``save_best``) could not be measured.

    If a resumed run has other images or ground truth than before, as ``own_data`` of the config tells, a warning says
    so. Scores on other validation images cannot be compared: the next validation then selects the best checkpoint anew.
    """

    best_ckpt_path: str | None
    best_ckpt_path_dict: dict[str, str | None]
    keep_ckpt_ids: deque
    _saved_iter = -1

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process():
            for file in Path(runner.work_dir).glob(f'.*{PART_SUFFIX}'):
                file.unlink(missing_ok=True)  # left by a run that was killed while it wrote
        self._record_data(runner)
        if runner._resume:
            self._saved_iter = runner.iter
            self._name_own_files(runner.message_hub.runtime_info.get('last_ckpt'))
            if _validation_is_due(runner):
                runner.logger.info('the last validation of the resumed run had not ended: it is done now')
                runner.val_loop.run()

    def _record_data(self, runner: Runner) -> None:
        """Record the statistics of the data in the run's checkpoints, and compare them with those recorded before."""
        data = dict((runner.cfg.get('own_data') or {}).get('statistics') or {})
        before = (runner._resume and runner.message_hub.runtime_info.get('data')) or data
        changed = [name for name in data if data[name] != before.get(name)]
        if changed:
            sides = ', '.join(f'{name}: {before.get(name)} before, {data[name]} now' for name in changed)
            again = '; the best checkpoint is selected anew' if 'val' in changed else ''
            runner.logger.warning(f'the data set has changed since this run was interrupted ({sides}){again}')
        if 'val' in changed:
            for key in [key for key in runner.message_hub.runtime_info if key.startswith('best_score')]:
                del runner.message_hub.runtime_info[key]
        runner.message_hub.update_info('data', data)

    def _name_own_files(self, last: str | None) -> None:
        """Replace the folder of the paths that a resumed run recorded by ``out_dir``, unless they are None.

        The folder may have been copied: the recorded paths are then those of the run that it was copied from.
        """
        self.last_ckpt = self._own(last)
        if not self.save_best:
            return
        if len(self.key_indicators) > 1:
            self.best_ckpt_path_dict = {key: self._own(path) for key, path in self.best_ckpt_path_dict.items()}
        else:
            self.best_ckpt_path = self._own(self.best_ckpt_path)

    def _own(self, path: str | None) -> str | None:
        own = None if path is None else self.file_backend.join_path(self.out_dir, Path(path).name)
        return own if own is not None and Path(own).exists() else path

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        runner.message_hub.update_info('last_validation', runner.iter)
        before = runner.message_hub.runtime_info.get('best_score')
        if metrics:  # otherwise nothing could be measured, and the evaluator has said so
            super().after_val_epoch(runner, metrics)
        # Save the last checkpoint again, to record the validation. With a better score, mmengine has done so.
        if self._saved_iter == runner.iter and runner.message_hub.runtime_info.get('best_score') == before:
            step = runner.epoch if self.by_epoch else runner.iter
            self._save_checkpoint_with_step(runner, step, dict(epoch=runner.epoch, iter=runner.iter))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        if 'auto' not in self.key_indicators and not set(self.key_indicators) <= metrics.keys():
            return  # not measurable, which the evaluator has reported
        several = len(self.key_indicators) > 1
        previous = dict(self.best_ckpt_path_dict) if several else {'': self.best_ckpt_path}
        if several:
            self.best_ckpt_path_dict = dict.fromkeys(previous)
        else:
            self.best_ckpt_path = None  # mmengine would remove it first
        super()._save_best_checkpoint(runner, metrics)
        for key, path in previous.items():
            new = self.best_ckpt_path_dict[key] if several else self.best_ckpt_path
            if new is None and several:
                self.best_ckpt_path_dict[key] = path
            elif new is None:
                self.best_ckpt_path = path
            elif path and path != new:
                self._remove(Path(path).name)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated: list[int] = []
        if self.max_keep_ckpts > 0:
            steps = [*(kept for kept in self.keep_ckpt_ids if kept != step), step]
            outdated = steps[: -self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(steps[-self.max_keep_ckpts :], self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._saved_iter = meta['iter']
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        write_text(Path(runner.work_dir) / 'last_checkpoint', str(self.last_ckpt))
        for old in outdated:
            self._remove(self.filename_tmpl.format(old))

    def _remove(self, name: str) -> None:
        if not is_main_process():
            return
        path = self.file_backend.join_path(self.out_dir, name)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # deepspeed's checkpoints are folders
            self.file_backend.rmtree(path)


def _validation_is_due(runner: Runner) -> bool:
    """Return True if a run was interrupted after it saved a checkpoint and before the next validation ended."""
    loop = runner.train_loop
    if runner.val_loop is None or runner.message_hub.runtime_info.get('last_validation') == runner.iter:
        return False
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    done, last = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)
