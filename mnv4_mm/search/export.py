"""Write a net of a supernet as an ordinary checkpoint with an ordinary config."""

from collections.abc import Sequence
from pathlib import Path

from mnv4_mm.files import write_whole
from mnv4_mm.models.space import Genes
from mnv4_mm.search.score import Scorer
from mnv4_mm.weights.checkpoint import Checkpoint, write_checkpoint


def export_net(checkpoint: str | Path | Checkpoint, genes: Sequence[int], path: Path) -> tuple[int, int]:
    """Write a net with its part of the weights of a supernet.

    The file is like one written by ``mnv4 train``: it can be evaluated and exported. Its batch norms have statistics of
    their own, see ``calibrate``. The config beside it, with the suffix ``.py``, trains the net further.

    Args:
        checkpoint: Checkpoint of the supernet.
        genes: The net.
        path: The file to write, ``.pth``.

    Returns:
        Width and height in pixels of the input of the net; for a segmenter, of its training crops.

    Raises:
        UserError: The checkpoint is not that of a supernet, the genes do not fit its space, its data is missing, or the
            file cannot be written.
    """
    scorer = Scorer(checkpoint)
    canonical: Genes = scorer.space.canonical(genes)
    model, cfg = scorer.model(canonical)
    source = scorer.checkpoint
    meta: dict = {
        key: source.meta[key] for key in ('dataset_meta', 'category_ids', 'experiment_name') if key in source.meta
    }
    meta |= dict(cfg=cfg.pretty_text, supernet=dict(sha256=source.sha256, genes=list(canonical)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(dict(meta=meta, state_dict=model.state_dict()), path)
    for key in ('resume', 'work_dir', 'launcher'):
        cfg.pop(key, None)
    cfg.load_from = str(path.resolve())
    write_whole(path.with_suffix('.py'), cfg.pretty_text)
    return tuple(cfg.input_size)
