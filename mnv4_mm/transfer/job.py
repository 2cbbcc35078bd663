"""Description of a transfer run for the process that executes the run. Imports nothing heavy."""

import json
from dataclasses import asdict, dataclass

from mnv4_mm.transfer.protocol import Run


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run with the paths that it reads and writes, as passed to the process that executes it.

    Attributes:
        protocol: Name or path of the protocol.
        run: The run.
        recipe: Digest of the recipe, see ``recipe.recipe_digest``.
        data_digest: Digest of the data, see ``data.data_digest``.
        data: Folder of the data set, with its splits already joined; None to use the data of the configs.
        work_dir: Folder for checkpoints and logs.
        weights_dir: Folder of ImageNet weights, ``<net>.safetensors`` or ``<net>.pth``. Weights without a file there
            are downloaded; None to download all.
        record: File to write the record to.
        lock: File that is locked while latency is measured, so that only one of the runs that share the file measures
            at a time. Checkpoints of teachers are kept in the folder ``teachers`` beside this file.
        dry: Only try every stage of the run, with 4 images and one epoch or iteration of training. Nothing is
            downloaded for the start ``imagenet``: without a file in ``weights_dir``, the weights are random.
    """

    protocol: str
    run: Run
    recipe: str
    data_digest: str
    data: str | None
    work_dir: str
    weights_dir: str | None
    record: str
    lock: str
    dry: bool = False

    def to_json(self) -> str:
        """Return the job as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'Job':
        """Parse the JSON of ``to_json``."""
        values = json.loads(text)
        return cls(**{**values, 'run': Run(*values['run'])})
