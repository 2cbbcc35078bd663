"""Length of a training schedule."""

from mmengine.config import Config

from mnv4_mm.config.rules import check_unit


def set_length(cfg: Config, length: int, unit: str) -> Config:
    """Set the length of a training schedule, and scale its points in proportion.

    These are scaled: the validation interval, the points at which it changes (``dynamic_intervals``), the points of the
    parameter schedulers that count in the same unit, and ``switch_epoch`` of hooks. Schedulers whose range becomes
    empty are removed. The interval of checkpoints is not scaled, but if the unit is iterations, the interval is limited
    to a quarter of the length.

    Args:
        cfg: A config; changed in place.
        length: The new number of epochs or iterations, at least 1.
        unit: ``epochs`` or ``iters``, the unit that the config counts in.

    Returns:
        ``cfg``.

    Raises:
        UserError: The config counts in the other unit.
    """
    check_unit(cfg, unit)
    key, by_epoch = f'max_{unit}', unit == 'epochs'
    before = cfg.train_cfg[key]

    def scaled(point: int) -> int:
        return round(point * length / before)

    cfg.train_cfg[key] = length
    cfg.train_cfg.val_interval = max(1, scaled(cfg.train_cfg.get('val_interval', 1)))
    if 'dynamic_intervals' in cfg.train_cfg:
        cfg.train_cfg.dynamic_intervals = [(scaled(start), every) for start, every in cfg.train_cfg.dynamic_intervals]
    schedulers = []
    for scheduler in cfg.param_scheduler:
        if scheduler.get('by_epoch', True) == by_epoch:
            for name in ('begin', 'end', 'T_max'):
                if name in scheduler:
                    scheduler[name] = scaled(scheduler[name])
            if 'T_max' in scheduler:
                begin, end = scheduler.get('begin', 0), scheduler.get('end', length)
                scheduler.T_max = max(1, min(scheduler.T_max, end - begin))
            if 'milestones' in scheduler:
                scheduler.milestones = [max(1, scaled(point)) for point in scheduler.milestones]
            if scheduler.get('end', length) <= scheduler.get('begin', 0):
                continue  # its range has become empty
        schedulers.append(scheduler)
    cfg.param_scheduler = schedulers
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint', {})
    if not by_epoch and 'interval' in checkpoint:
        checkpoint.interval = max(1, min(checkpoint.interval, length // 4))
    for hook in cfg.get('custom_hooks', []):
        if 'switch_epoch' in hook:
            hook.switch_epoch = scaled(hook.switch_epoch)
    return cfg
