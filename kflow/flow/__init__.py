"""How noise becomes data, band after band (§3.1, C.2.2)."""

from kflow.flow.path import Path
from kflow.flow.schedule import HardBump, Linear, Schedule, SoftBump
