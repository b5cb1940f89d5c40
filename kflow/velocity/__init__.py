"""Velocity fields on a path: the one that is learned, and the exact one for known data."""

from kflow.velocity.model import KFlow
from kflow.velocity.oracle import GaussianOracle, PointsOracle
