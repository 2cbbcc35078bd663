"""Any timm ``features_only`` net behind the contract of ``MobileNetV4``: the peers it is compared with."""

import difflib
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import tensors_only
from mnv4_mm.weights.strict import pretrained_entries

STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class TimmFeatures(BaseModule):
    """A timm net that hands out C2, C3, C4, C5.

    Args:
        name: timm's name, e.g. ``fastvit_sa12`` or ``repvit_m1_1.dist_450e_in1k``.
        out_indices: Maps to return, in rising order: 0...3 are C2...C5 at strides 4, 8, 16, 32. 4, which for
            MobileNetV4 is a wider map at stride 32, is C5 again: so its configs fit nets that have no such map.
        output_stride: 32, or 16 or 8: dilated as ``MobileNetV4``; a net that cannot be dilated is used at 32, with a
            line in the log.
        norm_eval: Keep the statistics of all batch norms while training.
        img_size: (height, width) in pixels, for nets that are built for one size, such as efficientformerv2.
        drop_path_rate: Stochastic depth; a net that has none is used without, with a line in the log.
        init_cfg: ``dict(type='Pretrained', checkpoint='timm://<name>.<tag>')`` loads timm's weights by timm; else
            timm's own initialisation stays.

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Strides of the returned maps in pixels.

    Raises:
        UserError: timm is not installed, has no such net, or the net has no map of a stride.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (1, 2, 3),
        output_stride: int = 32,
        norm_eval: bool = False,
        img_size: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if list(out_indices) != sorted(set(out_indices) & set(range(5))) or not out_indices:
            raise UserError(f'out_indices must be rising numbers of maps from 0 (C2) to 4, got {out_indices}')
        self.name = name
        self.norm_eval = norm_eval
        self.options: dict[str, Any] = dict(img_size=tuple(img_size)) if img_size else {}
        if drop_path_rate and not self._takes('drop_path_rate', drop_path_rate):
            self._say('has no stochastic depth: used without')
        wanted = [STRIDES[min(i, 3)] for i in out_indices]
        strides = list(_create(name, **self.options).feature_info.reduction())
        absent = set(wanted) - set(strides)
        if absent:
            raise UserError(f'timm:{name} has maps of strides {strides}, not of {sorted(absent)}')
        # Of several maps of a stride, the last. Chosen before dilation, which gives several maps one stride.
        chosen = [len(strides) - 1 - strides[::-1].index(stride) for stride in wanted]
        if output_stride != 32 and not self._takes('output_stride', output_stride):
            self._say('cannot be dilated: used at output stride 32')
        self.options['out_indices'] = tuple(sorted(set(chosen)))
        self.net = _create(name, **self.options)
        # Which of the net's maps each index is: two indices may be the same map.
        self.order = [self.options['out_indices'].index(i) for i in chosen]
        channels = self.net.feature_info.channels()
        self.out_channels = tuple(channels[i] for i in self.order)
        strides = self.net.feature_info.reduction()
        self.out_strides = tuple(strides[i] for i in self.order)

    def _takes(self, option: str, value: Any) -> bool:
        """Tries to build the net with an option of timm, and keeps it if that goes."""
        try:
            _create(self.name, **self.options, **{option: value})
        # What timm raises where a net does not know an option, or not this value.
        except (TypeError, NotImplementedError, AssertionError):
            return False
        self.options[option] = value
        return True

    def _say(self, text: str) -> None:
        print_log(f'timm:{self.name} {text}', logger='current', level=logging.WARNING)

    def init_weights(self) -> None:
        """Loads ``init_cfg`` of type Pretrained by timm; nothing else, timm has drawn the weights already.

        Raises:
            UserError: it is not a ``timm://`` name, or cannot be downloaded.
        """
        for entry in pretrained_entries(self.init_cfg):
            source = entry['checkpoint']
            if not source.startswith('timm://'):
                raise UserError(f'a timm net takes weights by name (timm://<name>.<tag>), got {source}')
            try:
                with tensors_only():
                    loaded = _create(source.removeprefix('timm://'), pretrained=True, **self.options)
            except UserError:
                raise
            # timm and the hub's client raise their own errors, httpx's, and OSError, depending on what is missing.
            except Exception as error:
                reason = ' '.join(str(error).split())[:200]
                raise UserError(f'{source} cannot be downloaded ({type(error).__name__}): {reason}') from error
            self.net.load_state_dict(loaded.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> one (N, C, H / stride, W / stride) per map of ``out_indices``."""
        maps = self.net(x)
        return tuple(maps[i] for i in self.order)

    def train(self, mode: bool = True) -> 'TimmFeatures':
        """Sets training mode; with ``norm_eval`` batch norms stay in evaluation mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def built_for_one_size(name: str) -> bool:
    """Whether a timm net takes pictures of one size only, which ``img_size`` must then give.

    Raises:
        UserError: as ``TimmFeatures``.
    """
    return _timm(name).get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size


def timm_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std (0 to 255, RGB) with which timm trained a net's weights; None for a name it does not know."""
    import timm

    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        return None
    return tuple(255 * m for m in cfg.mean), tuple(255 * s for s in cfg.std)


def _create(name: str, **options: Any) -> Any:
    return _timm(name).create_model(name, features_only=True, **options)


def _timm(name: str) -> ModuleType:
    """timm, if it is there and knows the name."""
    try:
        import timm
    except ImportError as error:
        raise UserError('a timm:<name> backbone needs timm: pip install timm') from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise UserError(f'timm has no net {name!r}{f"; near: {near}" if near else ""}')
    return timm
