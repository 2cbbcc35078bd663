"""Table of the published weights."""

from mnv4_mm.weights.cache import is_cached
from mnv4_mm.weights.tags import INCEPTION, tags_of


def weights_table(arch: str | None = None) -> str:
    """Return a plain text table of the published weights, with a line for each tag.

    The columns are the tag, the net, top-1 accuracy in %, image size in pixels, millions of parameters, mean and
    standard deviation of the normalisation, and whether the weights are in the cache.

    Args:
        arch: Name of the net whose weights are listed; None for all nets.

    Raises:
        UserError: No weights of this net are published.
    """
    tags = tags_of(arch)
    lines = [f'{"timm://":<52}{"net":<12}{"top-1":>7}{"pixels":>8}{"M":>7}  mean/std  cached']
    for name, tag in tags.items():
        top1 = '-' if tag.top1 is None else f'{tag.top1:.2f}'
        norm = '0.5/0.5' if tag.normalisation == INCEPTION else 'ImageNet'
        cached = 'yes' if is_cached(name) else 'no'
        lines.append(f'{name:<52}{tag.arch:<12}{top1:>7}{tag.size:>8}{tag.params:>7.2f}  {norm:<8}  {cached}')
    return '\n'.join(lines)
