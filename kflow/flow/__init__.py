"""How noise becomes data, band after band (§3.1, C.2.2)."""

from kflow.flow.model import KFlow
from kflow.flow.oracle import GaussianOracle, PointsOracle
from kflow.flow.path import Path
from kflow.flow.schedule import HardBump, Linear, Schedule, SoftBump

__all__ = ["GaussianOracle", "HardBump", "KFlow", "Linear", "Path", "PointsOracle", "Schedule", "SoftBump"]
