"""What a model costs: multiply-accumulates and parameters, whole and by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import as_arguments, copied
from compactmtl.graph.threads import one_thread


@dataclass(frozen=True)
class LayerCost:
    """One module without children: its MACs and its own parameters."""

    macs: int
    parameters: int


@dataclass(frozen=True)
class Cost:
    """A whole model at the given inputs (all of the batch)."""

    macs: int
    parameters: int
    layers: dict[str, LayerCost]


@one_thread()
def cost(model: nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any]) -> Cost:
    """Count MACs (convolutions and matrix products, by torch's FLOP counter) and parameters in eval mode."""
    counter = FlopCounterMode(display=False)
    arguments = copied(as_arguments(model, example_inputs))
    with borrowed(model):
        model.requires_grad_(False)  # the counter would follow the gradients of views of parameters
        with counter:
            model(*arguments)
    flops = counter.get_flop_counts()
    layers = {}
    root = type(model).__name__
    for name, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        macs = sum(flops.get(f"{root}.{name}" if name else root, {}).values()) // 2
        if own or (macs and not any(True for _ in module.children())):
            layers[name] = LayerCost(macs, own)
    total = sum(parameter.numel() for parameter in model.parameters())
    return Cost(sum(flops.get("Global", {}).values()) // 2, total, layers)
