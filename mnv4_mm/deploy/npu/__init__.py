"""NPUs that exported files are compiled for, without having one: one module for each maker."""

from mnv4_mm.deploy.npu import ethos_u, hexagon
from mnv4_mm.deploy.npu.base import Npu, Placement

__all__ = ['NPUS', 'Npu', 'Placement']

NPUS: dict[str, Npu] = {npu.name: npu for npu in (*ethos_u.ALL, *hexagon.ALL)}
