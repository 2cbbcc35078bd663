"""NPUs for which exported files can be compiled without having the device: one module for each vendor."""

from mnv4_mm.deploy.npu import ethos_u, hexagon
from mnv4_mm.deploy.npu.base import Npu, Placement

__all__ = ['NPUS', 'Npu', 'Placement']

NPUS: dict[str, Npu] = {npu.name: npu for npu in (*ethos_u.ALL, *hexagon.ALL)}
