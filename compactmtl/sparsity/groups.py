"""Channel groups as sparsity uses them: families bound to a model's tensors, with what their zeros free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compactmtl.config.words import key
from compactmtl.errors import ConfigError, SurgeryError
from compactmtl.graph.groups import GroupFamily
from compactmtl.sparsity.grouped_tensor import BoundFamily, bind, to_host
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.removal import Measure, Removal
from compactmtl.sparsity.selection import CostFunction, Keep

MEASURES = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}

NOTHING_STAYS = "where all of it goes, what reads it reads constants alone, of which surgery may remove more"


class ChannelGroups(Sequence[GroupFamily]):
    """Families of channel groups, bound to a model's parameters.

    `macs(keep)` is the model's MACs when surgery has removed what it can with only the flagged groups of each
    family left (one bool array a family, in order), or None where that is not known. `direct` says that every
    group frees a channel by itself, and not only together with groups of other layers. `left_out` names the layers
    whose channels are in no group because surgery could not remove them, `inexact` those for which what surgery leaves
    may differ from what is counted here, each with the reason.
    """

    def __init__(
        self,
        families: Sequence[GroupFamily],
        parameters: Mapping[str, nn.Parameter],
        macs: CostFunction | None = None,
        *,
        removal: Removal | None = None,
        direct: bool = True,
        left_out: Mapping[str, str] | None = None,
        inexact: Mapping[str, str] | None = None,
    ) -> None:
        """Raises ConfigError where a family's tensor is missing or its groups overlap."""
        self._families = tuple(families)
        self.bound: tuple[BoundFamily, ...] = tuple(bind(family, parameters) for family in families)
        self.removal = removal
        self.macs: CostFunction | None = removal.macs if macs is None and removal is not None else macs
        self.direct = direct
        self.left_out, self.inexact = dict(left_out or {}), dict(inexact or {})
        self._costs: Callable[[Measure, LatencyTable | None], CostFunction] | None = None

    def __len__(self) -> int:
        return len(self._families)

    @overload
    def __getitem__(self, index: int) -> GroupFamily: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[GroupFamily]: ...

    def __getitem__(self, index: int | slice) -> GroupFamily | Sequence[GroupFamily]:
        return self._families[index]

    def __iter__(self) -> Iterator[GroupFamily]:
        return iter(self._families)

    @property
    def total(self) -> int:
        """Groups of all families together."""
        return sum(family.size for family in self._families)

    @property
    def parameter_names(self) -> frozenset[str]:
        """Names of all tensors that hold a part of a group."""
        return frozenset(s.name for family in self.bound for s in family.tensors)

    def in_model(self, model: nn.Module) -> ChannelGroups:
        """The same groups over another model's parameters of the same names, such as an averaged copy."""
        return ChannelGroups(
            self._families,
            parameters_of(model),
            self.macs,
            removal=self.removal,
            direct=self.direct,
            left_out=self.left_out,
            inexact=self.inexact,
        )

    def whole(self) -> list[NDArray[np.bool_]]:
        """All groups of each family as kept."""
        return [np.ones(family.size, dtype=bool) for family in self._families]

    def inexact_at(self, keep: Sequence[NDArray[np.bool_]]) -> dict[str, str]:
        """`inexact`, and the families of which `keep`, a bool array (n,) a family, leaves nothing, with the reason."""
        gone = (
            family.name
            for family, flags in zip(self._families, keep, strict=True)
            if not flags.any() and not family.branch
        )
        return dict.fromkeys(gone, NOTHING_STAYS) | self.inexact

    def alive(self) -> list[NDArray[np.bool_]]:
        """Which groups are not exactly zero, a bool array (n,) a family."""
        with torch.no_grad():
            return to_host([~family.zeros() for family in self.bound])

    def after(
        self, kept: Mapping[tuple[str, int], NDArray[np.int64]], model: nn.Module
    ) -> tuple[ChannelGroups, list[NDArray[np.int64]]]:
        """The groups that remain in `model`, of whose parameters only the indices `kept` of a dimension stay.

        With them, for each family, which of its groups these are. What they cost is counted as before: groups
        that are gone are groups not kept. Raises SurgeryError where a group lost a part of its slices.
        """
        families, survivors = [], []
        for family in self._families:
            alive: NDArray[np.bool_] | None = None
            places = []
            for member in family.members:
                indices = kept.get((member.parameter, member.dim))
                place = member.indices
                if indices is not None:
                    new = np.full(max(int(indices.max()), int(member.indices.max())) + 1, -1, dtype=np.int64)
                    new[indices] = np.arange(len(indices))
                    place = new[member.indices]
                if family.branch:  # of which channels may go one by one
                    place = place[place >= 0][None]
                places.append(place)
                stays: NDArray[np.bool_] = np.asarray((place >= 0).all(axis=1), dtype=bool)
                alive = stays if alive is None else alive
                if (stays != alive).any() or (stays != (place >= 0).any(1)).any():
                    raise SurgeryError(
                        f"channel group {family.name}: only a part of a group was removed",
                        f"remove whole groups, or leave out {key('sparsity.shrink_every')}",
                    )
            assert alive is not None
            members = tuple(
                replace(m, indices=place[alive]) for m, place in zip(family.members, places, strict=True)
            )
            families.append(replace(family, members=members, size=int(alive.sum())))
            survivors.append(np.flatnonzero(alive))

        sizes = [family.size for family in self._families]

        def expanded(keep: Keep) -> list[NDArray[np.bool_]]:
            full = [np.zeros(size, dtype=bool) for size in sizes]
            for flags, index, own in zip(full, survivors, keep, strict=True):
                flags[index] = own
            return full

        def costs(measure: Measure, table: LatencyTable | None) -> CostFunction:
            counted = self.cost(measure, table)
            return lambda keep: counted(expanded(keep))

        macs = None if self.macs is None else costs("macs", None)
        remaining = ChannelGroups(
            families,
            parameters_of(model),
            macs,
            direct=self.direct,
            left_out=self.left_out,
            inexact=self.inexact,
        )
        remaining._costs = costs
        return remaining, survivors

    def cost(self, measure: Measure, table: LatencyTable | None = None) -> CostFunction:
        """The cost of the model as a function of the groups kept.

        Raises ConfigError where the groups say nothing of it, or latency has no table.
        """
        if self._costs is not None:
            return self._costs(measure, table)
        if measure == "macs" and self.macs is not None:
            return self.macs
        if self.removal is None:
            raise ConfigError(
                f"these channel groups say nothing of the {MEASURES[measure]} that they free",
                "find them with channel_groups(), on a model that can be traced",
            )
        return self.removal.cost(measure, table)


def zero_share(groups: ChannelGroups) -> float:
    """The paper's group sparsity: groups that are exactly zero / all groups."""
    with torch.no_grad():
        return sum(int((~flags).sum()) for flags in groups.alive()) / max(groups.total, 1)


def split_parameter_groups(
    model: nn.Module, shrunk: ChannelGroups | Collection[str], weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer parameter groups: `weight_decay` on all but the tensors that the prox shrinks, 0 on those.

    `shrunk` is the channel groups or the tensors' names. Raises ConfigError for a name the model lacks.
    """
    names = shrunk.parameter_names if isinstance(shrunk, ChannelGroups) else frozenset(shrunk)
    known = parameters_of(model)
    if missing := sorted(names - known.keys()):
        raise ConfigError(f"the model has no parameter {missing[0]!r}")
    held = {id(known[name]) for name in names}
    rest = [p for p in model.parameters() if id(p) not in held]
    inside = [p for p in model.parameters() if id(p) in held]
    return [
        {"params": rest, "weight_decay": weight_decay},
        {"params": inside, "weight_decay": 0.0},
    ]


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by each of its names."""
    return dict(model.named_parameters(remove_duplicate=False))
