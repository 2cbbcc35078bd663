"""Settings of a config that depend on how its processes are started."""

from mmengine.config import Config

from mnv4_mm.errors import UserError


def set_launcher(cfg: Config, launcher: str, on_gpu: bool) -> Config:
    """Set the launcher and the settings of distributed runs that depend on it.

    On GPUs, the backend is NCCL, and batch norms are synchronised. On CPUs, the backend is gloo, the model wrapper runs
    on the CPU, and batch norms are not synchronised. On GPUs, a model wrapper that a training on CPUs has left in the
    config is removed. For the launcher ``none``, only ``cfg.launcher`` is set.

    Args:
        cfg: A config; changed in place.
        launcher: mmengine's launcher: none, pytorch, slurm or mpi.
        on_gpu: True if the processes run on GPUs.

    Returns:
        ``cfg``.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        return cfg
    cfg.env_cfg.dist_cfg.backend = 'nccl' if on_gpu else 'gloo'
    if on_gpu:
        cfg.sync_bn = 'torch'
        if 'device_ids' in (cfg.get('model_wrapper_cfg') or {}):
            cfg.pop('model_wrapper_cfg')  # set by a training on CPUs
    else:
        cfg.pop('sync_bn', None)  # set by a training on GPUs; torch's synchronised norms need one
        # mmengine would wrap the model for GPU LOCAL_RANK
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        others = [hook for hook in cfg.get('custom_hooks', []) if hook['type'] != 'SameBuffersHook']
        cfg.custom_hooks = [*others, dict(type='SameBuffersHook')]
    return cfg


def check_timeout(cfg: Config) -> float | None:
    """Return the seconds that a process waits for the others, ``env_cfg.dist_cfg.timeout``; None for torch's default.

    Raises:
        UserError: It is not a positive number.
    """
    timeout = (cfg.env_cfg.get('dist_cfg') or {}).get('timeout')
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < 1e8:
        raise UserError(f'env_cfg.dist_cfg.timeout must be a positive number of seconds, below 1e8, got {timeout!r}')
    return timeout
