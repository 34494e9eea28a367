"""Sparsity in training loops: one object for a loop of one's own, which recipes, Lightning and Hugging Face share."""

from compactmtl.loops.shrinking import Shrinking

__all__ = ["Shrinking"]
