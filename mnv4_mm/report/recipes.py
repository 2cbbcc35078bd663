"""Models of the parity table and their short training. Imports nothing heavy."""

from collections.abc import Sequence
from typing import NamedTuple

from mnv4_mm.deploy.arguments import check_targets
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.errors import UserError

NETS = ('conv_s', 'conv_m', 'hybrid_m')


class Recipe(NamedTuple):
    """Recipe of the short training of a headline model.

    Attributes:
        config: Name of the small config whose data and schedule are used.
        size: Height and width of the images in pixels; the small config's size if None.
        length: Length of the training at a batch size of 4: for detectors the number of epochs of 256 images, for
            segmenters the number of iterations.
    """

    config: str
    size: int | None
    length: int


MODELS: dict[str, Recipe] = {
    'mnv4_ssdlite_coco': Recipe('mnv4_ssdlite_coco-mini', 192, 4),
    'mnv4_retinanet_coco': Recipe('mnv4_retinanet_coco-mini', 128, 3),
    'mnv4_retinanet-1x_coco': Recipe('mnv4_retinanet_coco-mini', 128, 8),
    'mnv4_rtmdet_coco': Recipe('mnv4_rtmdet_coco-mini', 128, 12),
    'mnv4_lraspp_ade20k': Recipe('mnv4_lraspp_ade20k-mini', None, 120),
    'mnv4_fpn_ade20k': Recipe('mnv4_fpn_ade20k-mini', None, 100),
    'mnv4_deeplabv3plus_ade20k': Recipe('mnv4_deeplabv3plus_ade20k-mini', None, 80),
    'mnv4_segformer_ade20k': Recipe('mnv4_segformer_ade20k-mini', None, 100),
}


def check_parity(models: Sequence[str] = (), nets: Sequence[str] = (), to: Sequence[str] = ()) -> list[Target]:
    """Check the arguments of ``parity``, which are the same here.

    Returns:
        The targets that ``to`` names.

    Raises:
        UserError: A name is unknown, or a package of a target is not installed.
    """
    for option, names, available in (('--models', models, MODELS), ('--nets', nets, NETS)):
        if unknown := [name for name in names if name not in available]:
            raise UserError(f'{option} {unknown[0]}: there are {", ".join(available)}')
    return check_targets(to)
