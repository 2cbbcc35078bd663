"""Time to start: ``--help``, imports, and reading annotations as large as COCO's."""

import statistics
from collections.abc import Iterator

from mnv4_mm.bench.measure import Figure, Ratio, run_python
from mnv4_mm.bench.reading import full_size_times
from mnv4_mm.config.index import REPOSITORY


def startup(rounds: int = 5) -> Iterator[Ratio | Figure]:
    """Measure the start-up of the command line, of the package and of training.

    ``tools/train.py --help`` and imports are timed as whole processes. For reading annotations as large as COCO's, time
    without imports and peak memory with imports are measured.

    Args:
        rounds: Number of runs of ``--help`` and of each import; the median is taken.
    """

    def seconds(*arguments: str) -> float:
        return statistics.median(run_python(list(arguments)).seconds for _ in range(rounds))

    yield Figure('tools/train.py --help', seconds(str(REPOSITORY / 'tools/train.py'), '--help'), 's', limit=1)
    yield Figure('import mnv4_mm', seconds('-c', 'import mnv4_mm'), 's')
    openmmlab = 'import mmdet.models, mmseg.models, timm'
    yield Figure('import mmdet.models, mmseg.models and timm', seconds('-c', openmmlab), 's')
    starts = full_size_times()
    cached, plain = (statistics.median(s.seconds for s in starts[key]) for key in ('CachedCocoDataset', 'CocoDataset'))
    name = 'start of training on annotations of COCO size'
    yield Ratio(f"{name}, against mmdet's CocoDataset", cached * 1e3, plain * 1e3, plain / cached)
    yield Figure(f'{name}, first time', starts['CachedCocoDataset, first'][0].seconds, 's')
    for key, times in starts.items():
        yield Figure(f'{name}: peak memory, {key}', times[0].peak_mib, 'MiB')
