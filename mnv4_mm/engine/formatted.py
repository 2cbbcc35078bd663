"""Config whose text is formatted once."""

import copy
from typing import Any

from mmengine.config import Config


class FormattedConfig(Config):
    """Config that keeps its formatted text.

    mmengine formats the text anew for the log, for the file in the work directory and for each checkpoint. That takes
    0.1 to 0.5 s each time (open-mmlab/mmcv#2466).
    """

    @classmethod
    def of(cls, cfg: Config) -> 'FormattedConfig':
        """Return a shallow copy of a config as a FormattedConfig."""
        formatted = cls.__new__(cls)
        formatted.__dict__.update(copy.copy(cfg).__dict__)
        return formatted

    @property
    def pretty_text(self) -> str:
        """The text of the config as mmengine formats it. It is formatted again if the content has changed."""
        content = repr(self.to_dict())
        kept: tuple[str, Any] = self.__dict__.get('_formatted', ('', ''))
        if kept[0] != content:
            kept = content, super().pretty_text
            self.__dict__['_formatted'] = kept  # not setattr, which would make an entry of the config
        return kept[1]
