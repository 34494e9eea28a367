"""Channel groups as data: which slices of which parameters must be zero together for a channel to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["producer", "affine", "consumer"]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """One parameter's share in a family of n groups.

    Group i owns `parameter.movedim(dim, 0)[indices[i]]`; `indices` is int64 (n, k).
    A producer writes the channel, an affine scales and shifts it, a consumer reads it.
    """

    parameter: str
    dim: int
    indices: Indices
    role: Role


@dataclass(frozen=True)
class GroupFamily:
    """n disjoint groups with the same member tensors, such as the channels of one residual stage.

    With every producer and affine slice of a group at zero, or every consumer slice, surgery can remove
    the group's channel. `macs_per_channel` and `parameters_per_channel` are what goes with one channel
    while all others are still there. A `branch` is one group that switches a residual branch off: what goes is the branch.
    """

    name: str  # module of the first producer
    members: tuple[Member, ...]
    size: int
    macs_per_channel: float
    parameters_per_channel: float
    branch: bool = False

    @property
    def channels(self) -> int:
        """Channels of one group: of a branch those that it adds to."""
        return int(self.members[0].indices.shape[1]) if self.branch else 1
