"""timm nets as backbones with the interface of ``MobileNetV4``, for comparisons."""

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
from mnv4_mm.paths import check_weights_file
from mnv4_mm.weights.checkpoint import tensors_only
from mnv4_mm.weights.strict import pretrained_entries

STRIDES = (4, 8, 16, 32)


@MODELS.register_module()
class TimmFeatures(BaseModule):
    """A timm ``features_only`` net that returns feature maps of C2 to C5.

    Args:
        name: Name of the net in timm, e.g. ``fastvit_sa12`` or ``repvit_m1_1.dist_450e_in1k``.
        out_indices: Feature maps to return, in ascending order. 0...3 are C2, C3, C4 and C5 at strides 4, 8, 16 and
            32. 4 (in MobileNetV4 a wider feature map at stride 32) is C5 as well, so that configs of MobileNetV4 work
            with all nets.
        output_stride: Largest stride of the feature maps, 32, 16 or 8. A net that timm cannot dilate keeps stride 32,
            with a warning.
        norm_eval: Keep the running statistics of all batch norm layers fixed during training.
        img_size: Height and width in pixels, for nets that are built for one input size, such as efficientformerv2;
            None for the size in timm.
        drop_path_rate: Stochastic depth rate. It is ignored, with a warning, for a net that does not support it.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights through timm: published ones
            (``timm://<name>.<tag>``) or the path of a file. Default: timm's initialisation.

    Attributes:
        out_channels: Channels of each returned feature map.
        out_strides: Stride of each returned feature map in pixels.

    Raises:
        UserError: timm is not installed or has no such net, the net has no feature map at a required stride, or
            ``out_indices`` are not ascending or out of range.
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
            raise UserError(f'out_indices must be ascending, from 0 (C2) to 4, got {out_indices}')
        self.name = name
        self.norm_eval = norm_eval
        self.options: dict[str, Any] = dict(img_size=tuple(img_size)) if img_size else {}
        if drop_path_rate and not self._try_option('drop_path_rate', drop_path_rate):
            self._warn('does not support stochastic depth: drop_path_rate is ignored')
        required = [STRIDES[min(i, 3)] for i in out_indices]
        strides = list(_create(name, **self.options).feature_info.reduction())
        absent = set(required) - set(strides)
        if absent:
            raise UserError(f'timm:{name} has feature maps at strides {strides}, but not at {sorted(absent)}')
        # The last feature map of each stride, selected before dilation, which makes several strides equal.
        selected = [len(strides) - 1 - strides[::-1].index(stride) for stride in required]
        if output_stride != 32 and not self._try_option('output_stride', output_stride):
            self._warn('cannot be dilated: used at output stride 32')
        self.options['out_indices'] = tuple(sorted(set(selected)))
        self.net = _create(name, **self.options)
        # timm leaves the feature maps of Swin and a few other nets as (N, H, W, C).
        self.is_channels_last = getattr(self.net, 'output_fmt', 'NCHW') == 'NHWC'
        # Position in the net's outputs of each requested feature map; two of them may be the same.
        self.order = [self.options['out_indices'].index(i) for i in selected]
        channels = self.net.feature_info.channels()
        self.out_channels = tuple(channels[i] for i in self.order)
        strides = self.net.feature_info.reduction()
        self.out_strides = tuple(strides[i] for i in self.order)

    def _try_option(self, option: str, value: Any) -> bool:
        """Try to build the net with an option of timm; keep the option and return True if that succeeds."""
        try:
            _create(self.name, **self.options, **{option: value})
        # timm raises one of these if a net does not support an option or a value.
        except (TypeError, NotImplementedError, AssertionError):
            return False
        self.options[option] = value
        return True

    def _warn(self, text: str) -> None:
        print_log(f'timm:{self.name} {text}', logger='current', level=logging.WARNING)

    def init_weights(self) -> None:
        """Load the weights of an ``init_cfg`` of type Pretrained. Otherwise keep timm's initialisation.

        Raises:
            UserError: The checkpoint is unknown or cannot be downloaded, or the file is missing, has an unsupported
                suffix or does not fit the net.
        """
        for entry in pretrained_entries(self.init_cfg):
            source = entry['checkpoint']
            is_file = not source.startswith('timm://')
            overlay = dict(pretrained_cfg_overlay=dict(file=check_weights_file(source))) if is_file else {}
            name = self.name if is_file else source.removeprefix('timm://')
            try:
                with tensors_only():
                    loaded = _create(name, pretrained=True, **overlay, **self.options)
            except UserError:
                raise
            # timm and the client of the hub raise errors of their own and of httpx, and OSError.
            except Exception as error:
                reason = ' '.join(str(error).split())[:200]
                problem = f'does not fit timm:{name}' if is_file else 'cannot be downloaded'
                raise UserError(f'{source} {problem} ({type(error).__name__}): {reason}') from error
            self.net.load_state_dict(loaded.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of ``out_indices``.

        Args:
            x: (N, 3, H, W), normalised.

        Returns:
            One tensor per index, (N, C, H / stride, W / stride). The net determines how sizes are rounded.
        """
        features = self.net(x)
        if self.is_channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return tuple(features[i] for i in self.order)

    def train(self, mode: bool = True) -> 'TimmFeatures':
        """Set training mode. With ``norm_eval``, batch norms stay in evaluation mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def has_fixed_input_size(name: str) -> bool:
    """Return True if a timm net accepts images of one size only, see ``img_size`` of ``TimmFeatures``.

    Raises:
        UserError: timm is not installed or has no such net.
    """
    return _timm(name).get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size


def timm_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std of the images that a timm net was trained with.

    Returns:
        Mean and std, each per RGB channel for pixels from 0 to 255; None if timm does not know the net or has no
            configuration of its weights.
    """
    import timm

    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        return None
    return tuple(255 * m for m in cfg.mean), tuple(255 * s for s in cfg.std)


def _create(name: str, **options: Any) -> Any:
    return _timm(name).create_model(name, features_only=True, **options)


def _timm(name: str) -> ModuleType:
    """Import timm and check that it has a net.

    Raises:
        UserError: timm is not installed or has no such net.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError('a timm:<name> backbone needs timm: pip install timm') from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise UserError(f'timm has no net {name!r}{f"; similar names: {near}" if near else ""}')
    return timm
