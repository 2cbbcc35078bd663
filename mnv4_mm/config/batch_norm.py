"""Check that batches are large enough for the batch norms of a model."""

from mmengine.config import Config

from mnv4_mm.config.supernet import space_of
from mnv4_mm.engine.sandwich import NAME
from mnv4_mm.errors import UserError
from mnv4_mm.models.input_size import scaled_size, ssd_maps

# Heads with a batch norm after global pooling.
POOLING = ('ASPPHead', 'DepthwiseSeparableASPPHead')


def check_batch_norms(cfg: Config) -> None:
    """Check that no batch norm gets only one value per channel, from which it cannot compute a variance.

    The check covers SSDLite, whose smallest feature map has one position, and DeepLabV3+, which pools over the image.
    Other models are refused at the first step (``refuse_batch_of_one``).

    Args:
        cfg: Config of a training run.

    Raises:
        UserError: A process trains on one image at a time, and a batch norm of the model gets a map of 1x1.
    """
    if cfg.train_dataloader.get('batch_size') != 1 or cfg.get('sync_bn') or cfg.get('qat'):
        return  # fine-tuning for int8 folds the norms into convolutions
    parts = (cfg.model.get(part) for part in ('neck', 'decode_head'))
    neck, head = (part if isinstance(part, dict) else {} for part in parts)  # lists, as of a cascade, are not known
    is_ssd = neck.get('type') == 'SSDNeck' and cfg.model.backbone.get('type') in ('MobileNetV4', 'TimmFeatures')
    is_sized = is_ssd and 'input_size' in cfg
    if is_sized and _is_batch_norm(neck) and max(ssd_maps(cfg.model, _smallest_input(cfg))[-1]) == 1:
        raise refuse_batch_of_one('its smallest feature map is 1x1')
    if head.get('type') in POOLING and _is_batch_norm(head):
        raise refuse_batch_of_one('it follows a pooling over the image')


def _smallest_input(cfg: Config) -> tuple[int, int]:
    """Return the smallest input that the model is trained with, (width, height) in pixels."""
    return scaled_size(cfg.input_size, space_of(cfg).scales[0] if cfg.get(NAME) else 1)


def refuse_batch_of_one(reason: object) -> UserError:
    """Return the error for a model that cannot be trained with batches of one image."""
    return UserError(
        f'a batch norm of this model cannot take batches of one image ({reason}): use batches of at least two images '
        'in each process, --cfg-options train_dataloader.batch_size=2'
    )


def _is_batch_norm(part: Config) -> bool:
    return (part.get('norm_cfg') or {}).get('type') == 'BN'
