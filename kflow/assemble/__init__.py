"""Molecular assembly: K-Flow on rigid bodies (E.10)."""

from kflow.assemble.geometry import fit_rotation, rotation_matrix, rotation_vector
from kflow.assemble.graph import GraphLaplacian
from kflow.assemble.model import Assembly, Clusters, Motion
from kflow.assemble.network import ClusterNetwork, atom_environments, molecule_volume
