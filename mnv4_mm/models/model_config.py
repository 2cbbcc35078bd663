"""Channels of backbone, neck and heads in the config of a model, ``model`` of a config of mmdet or mmseg."""

from collections.abc import Iterator, Sequence
from typing import Any


def dicts(value: Any) -> Iterator[dict]:
    """Iterate over all dicts in nested dicts and sequences, including ``value`` itself.

    Each dict is yielded before the dicts that it contains.
    """
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from dicts(item)


def set_channels(model: Any, old: Sequence[int], new: Sequence[int]) -> None:
    """Replace the channels of an old backbone in the neck and the heads.

    Each ``in_channels`` and ``out_channels`` that begins with the channels of the old backbone begins with those of the
    new one instead. Without a neck, a head that selects a feature map by ``in_index`` gets the channels of this feature
    map.

    Args:
        model: Config of the model; changed in place.
        old: Channels of the feature maps of the old backbone.
        new: Channels of the feature maps of the new backbone.
    """
    for part in dicts({key: value for key, value in model.items() if key != 'backbone'}):
        for key in ('in_channels', 'out_channels'):
            value = part.get(key)
            if isinstance(value, list | tuple) and list(value[: len(old)]) == list(old):
                part[key] = type(value)([*new, *value[len(old) :]])
        # mmseg's heads select a feature map by index.
        if 'neck' not in model and isinstance(part.get('in_index'), int):
            part['in_channels'] = new[part['in_index']]
        if 'neck' not in model and part.get('c1_in_channels'):
            part['c1_in_channels'] = new[0]  # DeepLabV3+ takes low-level features from the first feature map
