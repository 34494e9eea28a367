"""Channel groups as they were at a check, so that those which went since can be put back exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compactmtl.sparsity.grouped_tensor import BoundFamily, GroupedTensor
from compactmtl.sparsity.optimizer import OptimizerView
from compactmtl.sparsity.saved import check_state
from compactmtl.surgery.slice_plan import Kept, cut

_STATISTICS = ("running_mean", "running_var")


class Snapshot:
    """Values of all tensors in channel groups, the optimizer's moments of them, and the norms' running statistics."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._moments: dict[str, dict[str, Tensor]] = {}
        self._statistics: dict[str, Tensor] = {}  # by the buffer's name

    @torch.no_grad()
    def take(
        self, families: Sequence[BoundFamily], view: OptimizerView | None, buffers: Mapping[str, Tensor]
    ) -> None:
        """Keep all of it as it is now."""
        self._values, self._moments, self._statistics = {}, {}, {}
        for family in families:
            for s in family.tensors:
                if s.name not in self._values:
                    self._values[s.name] = s.parameter.detach().clone()
                    if view is not None:
                        self._moments[s.name] = {name: one.clone() for name, one in view.moments(s).items()}
                for name, buffer in _statistics(s, buffers):
                    self._statistics[name] = buffer.clone()

    @torch.no_grad()
    def put_back(
        self,
        families: Sequence[BoundFamily],
        groups: Sequence[Tensor],
        view: OptimizerView | None,
        buffers: Mapping[str, Tensor],
    ) -> None:
        """Give the flagged `groups`, bool (n,) a family, what they had; all others stay as they are."""
        for family, flags in zip(families, groups, strict=True):
            for s in family.tensors:
                _restore(s, s.parameter, self._values[s.name], flags)
                for name, value in view.moments(s).items() if view is not None else ():
                    if name in self._moments.get(s.name, {}):
                        _restore(s, value, self._moments[s.name][name], flags)
                for name, buffer in _statistics(s, buffers):
                    if name in self._statistics:
                        _restore(s, buffer, self._statistics[name], flags)

    def cut(self, kept: Kept) -> None:
        """The network was cut: of its parameters and buffers only the indices `kept` are left."""
        self._values = {name: cut(name, value, kept) for name, value in self._values.items()}
        self._moments = {
            name: {moment: cut(name, value, kept) for moment, value in moments.items()}
            for name, moments in self._moments.items()
        }
        self._statistics = {name: cut(name, value, kept) for name, value in self._statistics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, on the CPU."""
        return {
            "values": {name: value.cpu() for name, value in self._values.items()},
            "moments": {
                name: {moment: value.cpu() for moment, value in moments.items()}
                for name, moments in self._moments.items()
            },
            "statistics": {name: value.cpu() for name, value in self._statistics.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], families: Sequence[BoundFamily]) -> None:
        """The inverse of `state_dict`, on the devices of `families`. Raises ArtifactError for one that lacks something."""
        check_state(state, ("values", "moments", "statistics"), "what can be put back")
        where = {s.name: s.parameter.device for family in families for s in family.tensors}
        self._values = {name: value.to(where[name]) for name, value in state["values"].items()}
        self._moments = {
            name: {moment: value.to(where[name]) for moment, value in moments.items()}
            for name, moments in state["moments"].items()
        }
        home = next(iter(where.values()), torch.device("cpu"))
        self._statistics = {name: value.to(home) for name, value in state["statistics"].items()}


def _restore(s: GroupedTensor, values: Tensor, before: Tensor, groups: Tensor) -> None:
    chosen = s.spread(groups.to(values.device), False)
    values.copy_(torch.where(chosen, before, values))


def _statistics(s: GroupedTensor, buffers: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The running statistics of the norm that a scale or a shift belongs to, by name."""
    if s.role != "affine" or s.parameter.dim() != 1:
        return
    prefix = s.name.rpartition(".")[0]
    for name in _STATISTICS:
        buffer = buffers.get(f"{prefix}.{name}" if prefix else name)
        if buffer is not None and buffer.shape == s.parameter.shape:
            yield (f"{prefix}.{name}" if prefix else name), buffer
