"""Layers trained as products of factors, and their exact contraction to plain layers."""

from compactmtl.overparam.convert import contract, factor_of, factorized_layers, overparameterize
from compactmtl.overparam.svd import FactorizedConv2d, FactorizedLinear

__all__ = [
    "FactorizedConv2d",
    "FactorizedLinear",
    "contract",
    "factor_of",
    "factorized_layers",
    "overparameterize",
]
