"""Description of a transfer run for the process that executes the run. Imports nothing heavy."""

import json
from dataclasses import asdict, dataclass

from mnv4_mm.transfer.protocol import Run


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run, and where it reads and writes.

    Attributes:
        protocol: Name or path of the protocol.
        run: The run.
        recipe: Digest of the recipe, see ``recipe.recipe_digest``.
        data_digest: Digest of the data, see ``data.data_digest``.
        data: Folder of the data set, with its splits already joined; None to use the data of the configs.
        work_dir: Folder for checkpoints and logs.
        weights_dir: Folder of ImageNet weights, ``<net>.safetensors`` or ``<net>.pth``, used instead of a download.
        record: File to write the record to.
        lock: File that is locked while latency is measured, so that one run of a machine measures at a time.
        dry: Try every stage of the run on 4 images with one epoch or iteration of training, and with random weights
            where ``weights_dir`` has no file.
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
