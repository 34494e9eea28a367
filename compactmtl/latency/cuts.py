"""Cuts of a network: copies of it with some channels of every family of groups removed by surgery."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from compactmtl.sparsity import channel_groups
from compactmtl.surgery import compact

LEAST_SHARE = 1 / 8  # of a family's groups, that a random cut keeps


class Cutter:
    """Makes cuts of one network, whose weights do not matter: only shapes are timed."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], align: int) -> None:
        """`model` is a plain network. Channel counts of an aligned cut are multiples of `align`.

        Raises ConfigError where the network has no channel that could go, SurgeryError where it cannot be traced.
        """
        self._model, self._inputs, self._align = copy.deepcopy(model).eval(), inputs, align
        revive(self._model)
        self._groups = channel_groups(self._model, inputs, scope="model")

    @property
    def sizes(self) -> list[int]:
        """The number of groups of each family."""
        return [family.size for family in self._groups]

    def cut(self, kept: Sequence[int]) -> nn.Module:
        """The network with so many groups of each family, the first ones."""
        cut = copy.deepcopy(self._model)
        for family, count in zip(self._groups.in_model(cut).bound, kept, strict=True):
            gone = torch.arange(family.size) >= count
            for part in family.tensors:
                part.zero_(part.parameter.detach(), gone)
        return compact(cut, self._inputs, join=False).model  # each layer is timed

    def plan(self, count: int, seed: int = 0, *, alike: int = 0) -> list[list[int]]:
        """The group counts of `count` random cuts: for each family spread evenly from an eighth of its groups to all.

        The first `alike` cuts keep one share in all families, from the smallest to the largest: cuts of many independent
        shares have all about as many weights. In every second cut the counts are multiples of `align`, where a family has
        as many: kernels run at another speed there.
        """
        generator = np.random.default_rng(seed)
        shares = [
            LEAST_SHARE + (1 - LEAST_SHARE) * (np.arange(count) + 0.5) / max(count, 1) for _ in self.sizes
        ]
        same = np.sort(shares[0])[np.linspace(0, count - 1, alike).round().astype(int)] if shares else []
        for own in shares:
            generator.shuffle(own)
            for index, share in enumerate(same):
                there = int(np.argmin(np.abs(own - share)))
                own[[index, there]] = own[[there, index]]
        return [
            [
                self._count(size, float(own[index]), aligned=index % 2 == 0)
                for size, own in zip(self.sizes, shares, strict=True)
            ]
            for index in range(count)
        ]

    def _count(self, size: int, share: float, *, aligned: bool) -> int:
        count = max(round(size * share), 1)
        if aligned and size >= self._align:
            count = max(round(count / self._align), 1) * self._align
        return min(count, size)


def revive(model: nn.Module) -> None:
    """Set parameters that are all zero to one, in place: the last norm of a residual block may start at zero, and surgery
    would take its whole block.
    """
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.ones_(parameter)
