"""Write a net of a supernet as an ordinary checkpoint with an ordinary config."""

import copy
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.supernet import space_of, with_subnet
from mnv4_mm.errors import UserError
from mnv4_mm.files import write_whole
from mnv4_mm.models.space import Genes
from mnv4_mm.search.score import Scorer
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint


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
        UserError: The checkpoint is not that of a supernet, the genes do not fit its space, its data is missing, a file
            cannot be written, or the config exists with another text.
    """
    source = read_checkpoint(checkpoint)
    trained = checkpoint_config(source)
    canonical: Genes = space_of(trained).canonical(genes)
    cfg = with_subnet(trained, canonical)
    text, config = _config_text(cfg, path), path.with_suffix('.py')
    if config.is_file() and _settings(config.read_text(encoding='utf-8', errors='replace')) != _settings(text):
        raise UserError(f'{config} exists and is another config: move it, or name another file by --out')
    model = Scorer(source, images=1).model(canonical)[0]
    meta: dict = {
        key: source.meta[key] for key in ('dataset_meta', 'category_ids', 'experiment_name') if key in source.meta
    }
    meta |= dict(cfg=cfg.pretty_text, supernet=dict(sha256=source.sha256, genes=list(canonical)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(config, text)  # first: a checkpoint without a config is taken for one of another command
    write_checkpoint(dict(meta=meta, state_dict=model.state_dict()), path)
    return tuple(cfg.input_size)


def _config_text(cfg: Config, path: Path) -> str:
    """Return the text of a config that trains a net further, from its checkpoint."""
    cfg = copy.deepcopy(cfg)
    for key in ('resume', 'work_dir', 'launcher'):
        cfg.pop(key, None)
    cfg.load_from = str(path.resolve())
    return cfg.pretty_text


def _settings(text: str) -> list[str]:
    """Return the lines of a config without the path of its checkpoint, which is another one if the folder was moved."""
    return [line for line in text.splitlines() if not line.startswith('load_from = ')]
