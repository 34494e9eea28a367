"""Modules that run at full width after surgery, such as norms, which divide by the original number of channels.

The module keeps its original width and all its parameters: zeros are put behind the remaining channels, and what it
computes of them is dropped. That is exact for whatever the module computes of a channel that is zero, and takes
one copy of its input; its own kernel stays the fused one that it was. A norm over groups of channels gets its zeros at
their own places, by index, for a channel belongs to a group by its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags, Ids
from compactmtl.surgery.order import Order
from compactmtl.surgery.plan import FullWidthEdit


def full_width_edits(graph: ChannelGraph, alive: Flags) -> tuple[FullWidthEdit, ...]:
    """The modules that count channels of which some go, with only the `alive` classes kept, (classes,)."""
    edits = []
    for module in graph.full_width:
        kept = alive[graph.labels[module.ids]]
        if not kept.all() and not module.is_cut(kept):
            places = tuple(np.flatnonzero(kept).tolist()) if module.groups > 1 else ()
            edits.append(
                FullWidthEdit(
                    module=module.module,
                    size=len(kept),
                    kept=int(kept.sum()),
                    input_dim=module.input_dim,
                    output_dim=module.output_dim,
                    places=places,
                )
            )
    return tuple(edits)


def full_width_orders(graph: ChannelGraph, alive: Flags, order: Order) -> dict[tuple[str, int], Ids]:
    """The order of each dimension of the parameters of such modules: kept channels first, as `order` has them, then the others."""
    orders = {}
    for module in graph.full_width:
        labels = graph.labels[module.ids]
        kept = alive[labels]
        if module.is_cut(kept):
            continue
        for parameter in module.parameters:
            orders[parameter] = (
                np.concatenate([order.kept(labels, kept), np.flatnonzero(~kept)])
                if module.groups == 1
                else np.arange(len(kept))
            )
    return orders


def install(module: nn.Module, edit: FullWidthEdit, device: torch.device | None = None) -> None:
    """Make a module put zeros behind the channels of its input and drop as many of its output's.

    `device` is where the model is: a norm may have no parameters that say it.
    The numbers are an attribute, which is not saved: state_dict keeps its names, and the plan holds them.
    """
    module.full_width = (edit.size - edit.kept, edit.kept, edit.input_dim, edit.output_dim)  # type: ignore[assignment]
    if not edit.places:
        module.register_forward_pre_hook(_pad)
        module.register_forward_hook(_narrow)
        return
    # Where no channel is left the one zero behind the kept ones is read.
    places = torch.tensor(edit.places)
    spread = torch.full((edit.size,), edit.kept).index_copy(0, places, torch.arange(edit.kept))
    module.register_buffer("full_width_spread", spread.to(device), persistent=False)
    module.register_buffer("full_width_places", places.to(device), persistent=False)
    module.register_forward_pre_hook(_spread)
    module.register_forward_hook(_select)


def _pad(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    missing, _, dim, _ = module.full_width
    return (nn.functional.pad(args[0], (0, 0) * (-1 - dim) + (0, missing)), *args[1:])


def _spread(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    dim = module.full_width[2]
    padded = nn.functional.pad(args[0], (0, 0) * (-1 - dim) + (0, 1))
    return (padded.index_select(dim, module.full_width_spread), *args[1:])


def _select(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.index_select(module.full_width[3], module.full_width_places)


def _narrow(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    _, kept, _, dim = module.full_width
    return output.narrow(dim, 0, kept)
