"""Values that are known before the model runs, and those that a run confirms."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from compactmtl.graph.aliases import is_mutation
from compactmtl.graph.calls import MADE, operator
from compactmtl.graph.space import Axis, Flags
from compactmtl.graph.trace import Traced


def static_values(traced: Traced) -> dict[fx.Node, Tensor]:
    """The value of every call that reads nothing but parameters, buffers, constants and other such calls."""
    values: dict[fx.Node, Tensor] = {}

    def given(node: fx.Node, copied: bool) -> Tensor:
        if node in traced.tensors:
            # A call may hand its argument on to be written into: the model's own tensors are not to be touched.
            return traced.tensors[node][1].clone()
        if node in values:
            return values[node].clone() if copied else values[node]
        made = node.meta["val"]  # what new_zeros and the like take their type from
        return torch.empty(0, dtype=made.dtype, device=made.device)

    with torch.no_grad():
        for node in traced.calls:
            inputs = node.all_input_nodes
            made = operator(node) in MADE and node not in traced.hazards
            if made or (inputs and all(source in traced.tensors or source in values for source in inputs)):
                args, kwargs = fx.node.map_arg(
                    (node.args, node.kwargs), partial(given, copied=is_mutation(node))
                )
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values


def confirm(value: Tensor, axis: Axis, flags: Flags) -> tuple[Flags, NDArray[np.float64]]:
    """Read the constants off a real run; an entry that is not uniform there is live after all."""
    first = value.detach().movedim(axis.dims, tuple(range(len(axis.dims))))
    chosen = first.reshape(flags.size, -1)[torch.from_numpy(flags.ravel())]
    is_complex = chosen.is_complex()
    chosen = chosen.abs() if is_complex else chosen.double()
    low, high = chosen.amin(1), chosen.amax(1)
    if is_complex:  # of which only zeros are told
        low, high = torch.where(high == 0, low, -1.0), torch.where(high == 0, high, 1.0)
    # Rounding differs between pixels where a kernel sums in another order; a real dependence is far larger.
    uniform = (high - low) <= 1e-5 * torch.maximum(high.abs(), low.abs())
    values = np.zeros(flags.shape)
    values[flags] = ((low + high) / 2).cpu().numpy()
    confirmed = flags.copy()
    confirmed[flags] = uniform.cpu().numpy()
    return confirmed, values
