"""Defaults for data sets that are much smaller than COCO or ADE20K. docs/training.md describes them."""

from collections.abc import Callable

from mmengine.config import Config

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.optimizer import set_learning_rate_scaling
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.schedule import set_length
from mnv4_mm.config.weights import default_tag, is_pretrained, published_tags, set_weights
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import Checkpoint
from mnv4_mm.weights.hub import fetch_timm

# Data sets with more training images keep the schedule and the norms of the config.
SMALL = 10_000
# Training images that a run sees, repetitions included, and the smallest number of passes over the data.
SAMPLES, PASSES = 30_000, 12
# With fewer images, norms keep the statistics of pretrained weights.
FEW = 1_000


def set_small_data(
    cfg: Config, images: int, options: TrainOptions, log: Callable[[str], object], *, resumes: bool = False
) -> Config:
    """Adjust weights, norms, length and learning rate of a config to a user's data set.

    The backbone starts from its default ImageNet weights if they are available. With at most 10,000 training images,
    the length is limited to 30,000 images seen or 12 passes over the data, whichever is more. With at most 1,000
    training images, the batch norms of a pretrained MobileNetV4 also keep their statistics (``norm_eval``). A supernet
    (``--space``) keeps the length of the config. The learning rate is scaled by ``set_scaled_rate``. Settings that an
    option or ``--cfg-options`` sets stay as they are.

    Args:
        cfg: A config with the user's data; changed in place.
        images: Number of training images.
        options: Options of training.
        log: Called with one line about each choice.
        resumes: True if the run resumes a checkpoint. Weights and norms are then left to ``set_started_backbone``.

    Returns:
        ``cfg``.
    """
    set_by_user = tuple(options.cfg_options or {})
    if not resumes:
        _set_weights(cfg, options, set_by_user, log)
    if images <= SMALL:
        if not resumes:
            _freeze_norms(cfg, images, set_by_user, log)
        if not options.space:  # random weights need the whole length
            _set_length(cfg, images, options, set_by_user, log)
    return set_scaled_rate(cfg, options, log)


def set_scaled_rate(cfg: Config, options: TrainOptions, log: Callable[[str], object]) -> Config:
    """Enable the scaling of the learning rate to the batch size, see ``set_learning_rate_scaling``.

    The config stays as it is if ``options.auto_scale_lr`` is not None, if ``--cfg-options`` sets a value of
    ``optim_wrapper`` or ``auto_scale_lr``, or if the config has no ``auto_scale_lr.base_batch_size``.

    Args:
        cfg: A config with the user's data; changed in place.
        options: Options of training.
        log: Called with a line if scaling is enabled and the batch size of a process differs from the base batch size.

    Returns:
        ``cfg``.
    """
    set_by_user = tuple(options.cfg_options or {})
    rate_is_set = any(key.startswith(('optim_wrapper', 'auto_scale_lr')) for key in set_by_user)
    base = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    if options.auto_scale_lr is None and base and not rate_is_set:
        set_learning_rate_scaling(cfg)
        size = (options.cfg_options or {}).get('train_dataloader.batch_size', cfg.train_dataloader.get('batch_size', 1))
        if size != base:
            rate = cfg.optim_wrapper.optimizer.get('lr')
            # The learning rate of --qat is not final yet: set_qat_schedule says what it becomes.
            result = f': {rate:g} x {size}/{base} = {rate * size / base:g}' if rate and not options.qat else ''
            several = ', times their number' if result and options.launcher != 'none' else ''
            log(
                f'learning rate: made for {base} images a step, scaled to {size} in each process{result}{several} '
                '(--no-auto-scale-lr keeps it)'
            )
    return cfg


def set_started_backbone(cfg: Config, checkpoint: Checkpoint, options: TrainOptions) -> Config:
    """Use ``init_cfg`` and ``norm_eval`` of the backbone as a resumed run was started, unless an option sets them.

    The defaults that ``set_small_data`` chose at the start cannot always be chosen again, e.g. if weights could be
    downloaded then and cannot be downloaded now.

    Raises:
        UserError: The config inside the checkpoint has more than plain values and registered types.
    """
    set_by_user = options.weights or any(key.startswith('model.backbone') for key in options.cfg_options or {})
    if set_by_user or 'cfg' not in checkpoint.meta:
        return cfg
    started = checkpoint_config(checkpoint).model.get('backbone') or {}
    for key in ('init_cfg', 'norm_eval'):
        cfg.model.backbone.pop(key, None)
        if key in started:
            cfg.model.backbone[key] = started[key]
    return cfg


def _set_weights(cfg: Config, options: TrainOptions, set_by_user: tuple[str, ...], log: Callable) -> None:
    """Start from ImageNet weights if they are on this machine or can be downloaded."""
    if options.weights or any(key.startswith(('model.backbone', 'load_from')) for key in set_by_user):
        return
    backbone = cfg.model.backbone
    if cfg.get('load_from'):
        return
    if backbone.get('type') == 'TimmFeatures' and not is_pretrained(cfg):
        log(f'weights: random ones (--weights timm starts {backbone.name} from ImageNet weights, if timm has any)')
    if backbone.get('type') != 'MobileNetV4':
        return
    if is_pretrained(cfg) and not published_tags(cfg):
        return  # the weights are in a file
    tag = next(iter(published_tags(cfg)), None) or default_tag(cfg)
    if tag is None:
        log('weights: random ones, since no weights of this backbone are published')
        return
    try:
        fetch_timm(tag)
    except UserError as error:
        set_weights(cfg, 'none')
        log(f'warning: the backbone starts from random weights and so needs far more images: {error}')
        return
    if not is_pretrained(cfg):
        set_weights(cfg, 'timm')
    log(f'weights: {tag} of timm (--weights none starts from random ones)')


def _freeze_norms(cfg: Config, images: int, set_by_user: tuple[str, ...], log: Callable) -> None:
    backbone = cfg.model.backbone
    if backbone.get('type') != 'MobileNetV4' or not is_pretrained(cfg) or images > FEW:
        return
    if 'norm_eval' in backbone or any(key.startswith('model.backbone') for key in set_by_user):
        return
    backbone.norm_eval = True
    log('norms of the backbone: statistics of its weights are kept (--cfg-options model.backbone.norm_eval=False)')


def _set_length(cfg: Config, images: int, options: TrainOptions, set_by_user: tuple[str, ...], log: Callable) -> None:
    if options.epochs or options.iters or any(key.startswith(('train_cfg', 'param_sched')) for key in set_by_user):
        return
    samples = max(SAMPLES, PASSES * images)
    unit = 'epochs' if 'max_epochs' in cfg.train_cfg else 'iters'
    repeated = cfg.train_dataloader.dataset.get('times', 1)
    batch = (options.cfg_options or {}).get('train_dataloader.batch_size', cfg.train_dataloader.get('batch_size', 1))
    step = images * repeated if unit == 'epochs' else batch
    length = min(cfg.train_cfg[f'max_{unit}'], max(1, round(samples / step)))
    if length != cfg.train_cfg[f'max_{unit}']:
        set_length(cfg, length, unit)
        each = f' of {step} images' if unit == 'epochs' else f' of {batch} images'
        log(f'length: {length} {unit}{each}, for {images} training images (--{unit} N sets another one)')
