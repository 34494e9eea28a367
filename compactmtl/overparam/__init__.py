"""Layers trained in a richer form than they are deployed in, and their exact contraction to plain layers."""

from compactmtl.overparam.convert import contract, factor_of, factorized_layers, overparameterize
from compactmtl.overparam.kinds import DIAGONAL, Kind, Rank
from compactmtl.overparam.layer import OverparamLayer

__all__ = [
    "DIAGONAL",
    "Kind",
    "OverparamLayer",
    "Rank",
    "contract",
    "factor_of",
    "factorized_layers",
    "overparameterize",
]
