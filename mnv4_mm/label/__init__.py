"""Run an exported file over many images: in processes on one machine, or with Ray on several. Needs no PyTorch."""

from typing import TYPE_CHECKING

from mnv4_mm.lazy import lazy_names

if TYPE_CHECKING:
    from mnv4_mm.label.labeller import Labeller
    from mnv4_mm.label.run import Labelled, label

__all__ = ['Labelled', 'Labeller', 'label']

# Name -> module and attribute. Imported on first use: pyarrow may be missing when the command line checks arguments.
_NAMES = {
    'Labelled': ('mnv4_mm.label.run', 'Labelled'),
    'Labeller': ('mnv4_mm.label.labeller', 'Labeller'),
    'label': ('mnv4_mm.label.run', 'label'),
}
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
