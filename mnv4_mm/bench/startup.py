"""How long it takes until something happens: `--help`, the import, and annotations of COCO's size."""

import statistics

from mnv4_mm.bench.measure import Figure, Ratio, run
from mnv4_mm.bench.reading import full_size_times
from mnv4_mm.config.index import REPOSITORY


def startup(rounds: int = 5) -> tuple[list[Ratio], list[Figure]]:
    """Seconds of whole processes; of the annotations, of building the data set alone."""

    def seconds(*command: str) -> float:
        return statistics.median(run(list(command)).seconds for _ in range(rounds))

    starts = full_size_times()
    cached, plain = (statistics.median(s.seconds for s in starts[key]) for key in ('CachedCocoDataset', 'CocoDataset'))
    name = 'start of training on annotations of COCO size'
    return [Ratio(f"{name}, against mmdet's CocoDataset", cached * 1e3, plain * 1e3, plain / cached)], [
        Figure('tools/train.py --help', seconds(str(REPOSITORY / 'tools/train.py'), '--help'), 's', limit=1),
        Figure('import mnv4_mm', seconds('-c', 'import mnv4_mm'), 's'),
        Figure(
            'import mmdet.models, mmseg.models and timm', seconds('-c', 'import mmdet.models, mmseg.models, timm'), 's'
        ),
        Figure(f'{name}, first time', starts['CachedCocoDataset, first'][0].seconds, 's'),
        *(Figure(f'{name}: peak memory, {key}', times[0].peak_mib, 'MiB') for key, times in starts.items()),
    ]
