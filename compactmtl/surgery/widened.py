"""Norms after surgery: they divide by the number of channels that there were, of which those that went were zero.

The module runs at its original width, with its parameters whole: zeros are put behind the channels that are left, and
what it makes of them is dropped. That is exact for whatever the module computes of a channel that is zero, and takes
one copy of its input; its own kernel stays the fused one that it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags, Ids
from compactmtl.surgery.plan import Widen


def widened(graph: ChannelGraph, alive: Flags) -> tuple[Widen, ...]:
    """The modules that count channels of which some go, with only the `alive` classes left, (classes,)."""
    found = []
    for wide in graph.full_width:
        kept = alive[graph.labels[wide.ids]]
        if not kept.all():
            found.append(
                Widen(
                    module=wide.module,
                    size=len(kept),
                    kept=int(kept.sum()),
                    input_dim=wide.input_dim,
                    output_dim=wide.output_dim,
                )
            )
    return tuple(found)


def reordered(graph: ChannelGraph, alive: Flags) -> dict[tuple[str, int], Ids]:
    """The order of each dimension of the parameters of such modules: what is left comes first, the rest stays too."""
    orders = {}
    for wide in graph.full_width:
        kept = alive[graph.labels[wide.ids]]
        for parameter in wide.parameters:
            orders[parameter] = np.argsort(~kept, kind="stable")
    return orders


def install(module: nn.Module, widen: Widen) -> None:
    """Make a module put zeros behind the channels of its input and drop as many of its output's.

    The numbers are an attribute, which is not saved: state_dict keeps its names, and the plan holds them.
    """
    module.widened = (widen.size - widen.kept, widen.kept, widen.input_dim, widen.output_dim)  # type: ignore[assignment]
    module.register_forward_pre_hook(_widen)
    module.register_forward_hook(_narrow)


def _widen(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    missing, _, dim, _ = module.widened
    return (nn.functional.pad(args[0], (0, 0) * (-1 - dim) + (0, missing)), *args[1:])


def _narrow(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    _, kept, _, dim = module.widened
    return output.narrow(dim, 0, kept)
