"""The browser: a folder with an ONNX file, onnxruntime-web and a page. The browser that opens the page runs the file.

The selection of boxes, or the class map, is part of the ONNX file. The page only resizes images and draws the results.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnv4_mm.deploy.layers_file import LAYERS_SUFFIX
from mnv4_mm.deploy.targets.base import Target
from mnv4_mm.deploy.targets.onnx import Onnx
from mnv4_mm.runtime.meta import Precision, sha256, sidecar
from mnv4_mm.runtime.sessions.base import missing_message
from mnv4_mm.web import onnxruntime_web, page

if TYPE_CHECKING:
    from mnv4_mm.deploy.graph import Graph


class Web(Target):
    name = 'web'
    converter = Onnx.converter
    kinds = ('nms', 'class_map')
    precisions = Onnx.precisions
    distributions = Onnx.distributions
    runs_elsewhere = True

    def absent(self, convert: bool = False) -> str | None:
        if not convert:
            return self.runtime.absent()
        modules = missing_message(self.name, self.runtime.modules + self.converter, 'export,onnx')
        return modules or onnxruntime_web.absent()

    def versions(self) -> dict[str, str]:
        return {**super().versions(), 'onnxruntime-web': onnxruntime_web.VERSION}

    def convert(
        self, graph: 'Graph', path: Path, precision: Precision, calibration: Sequence[np.ndarray] = ()
    ) -> list[Path]:
        # First, since it may need the network: nothing is converted in vain.
        onnxruntime_web.extract(path / 'onnxruntime-web')
        meta = dataclasses.replace(graph.meta, target=Onnx.name)
        file = path / f'{path.stem}{Onnx().suffix}'
        _, *layers = Onnx().convert(dataclasses.replace(graph, meta=meta), file, precision, calibration)
        # Names are relative to the file in its own metadata: it also runs outside of this folder.
        sidecar(file).write_text(dataclasses.replace(meta, files={file.name: sha256(file)}).to_json())
        for name in (page.PAGE, *page.SCRIPTS):
            (path / name).write_bytes(page.source(name))
        described = page.description('browser', file.name, meta.task, meta.classes, meta.palette)
        (path / page.DESCRIPTION).write_text(json.dumps(described, indent=1))
        return [path, *(part.replace(path.with_name(path.name + LAYERS_SUFFIX)) for part in layers)]
