"""Metrics that cannot be measured are left out, instead of being reported as -1 or NaN."""

import math
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import EVALUATOR

NOT_MEASURABLE = 'not measurable'


@EVALUATOR.register_module()
class MeasuredEvaluator(Evaluator):
    """mmengine's ``Evaluator``, but metrics without ground truth, which are NaN or pycocotools' -1, are left out.

    Attributes:
        unmeasured: Names of the metrics that the last evaluation left out.
    """

    unmeasured: tuple[str, ...] = ()

    def evaluate(self, size: int) -> dict[str, Any]:
        """Return the metrics that could be measured. Log a warning if the first metric, the main one, could not.

        Args:
            size: Number of images in the data set.

        Returns:
            Metrics by name; empty if none could be measured.
        """
        metrics = super().evaluate(size)
        self.unmeasured = tuple(name for name, value in metrics.items() if not is_measured(value))
        # Only for the main metric: others, such as the AP of small objects, are often absent.
        if self.unmeasured and self.unmeasured[0] == next(iter(metrics)):
            MMLogger.get_current_instance().warning(
                f'{self.unmeasured[0]}: {NOT_MEASURABLE}: these images have no ground truth for it'
            )
        return {name: value for name, value in metrics.items() if name not in self.unmeasured}


def is_measured(value: Any) -> bool:
    """Return False for NaN, and for the -1 with which pycocotools marks missing ground truth."""
    return not (isinstance(value, int | float) and (math.isnan(value) or value == -1))
