"""Which outputs of a model's layers are dead by numbers alone, and which of them surgery neither removed nor listed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compactmtl.surgery import SurgeryReport

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.modules.conv._ConvTransposeNd)


def dead_outputs(model: nn.Module, draws: Callable[[], tuple[Any, ...]], runs: int = 12) -> dict[str, int]:
    """By layer, how many output channels are uniform whatever the input, or get no gradient.

    Each run draws all weights anew but for those that are zero, so that what an activation happens to cut off on some
    inputs does not count: only zeros among the weights make a channel dead.
    """
    model = copy.deepcopy(model)
    weights = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    caught: dict[str, list[tuple[int, Tensor]]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            output.retain_grad()
            dim = -1 if isinstance(module, nn.Linear) else -len(module.kernel_size) - 1  # type: ignore[arg-type]
            caught.setdefault(name, []).append((dim, output))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, _LAYERS):
            module.register_forward_hook(keep(name))
    uniform: dict[str, Tensor] = {}
    unread: dict[str, Tensor] = {}
    for _ in range(runs):
        caught.clear()
        with torch.no_grad():
            for parameter, value in weights.items():
                parameter.copy_(value * torch.randn_like(value))
        outputs = [leaf for leaf in tree_leaves(model(*draws())) if isinstance(leaf, Tensor)]
        taken = [leaf for leaf in outputs if leaf.requires_grad]
        torch.autograd.backward(taken, [torch.randn_like(leaf) for leaf in taken])
        for name, calls in caught.items():
            for dim, output in calls:
                rows = output.detach().movedim(dim, 0).flatten(1)
                gradient = torch.zeros_like(output) if output.grad is None else output.grad
                same = rows.amin(1) == rows.amax(1)
                none = (gradient.movedim(dim, 0) == 0).flatten(1).all(1)
                uniform[name] = uniform.get(name, same) & same
                unread[name] = unread.get(name, none) & none
    return {name: int((uniform[name] | unread[name]).sum()) for name in uniform}


def unsaid(report: SurgeryReport, dead: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Layers whose dead outputs are neither all gone nor listed: how many are dead and how many went."""
    removed = {layer.name: layer.before[0] - layer.after[0] for layer in report.layers}
    return {
        name: (count, removed.get(name, 0))
        for name, count in dead.items()
        if count > removed.get(name, 0) and name not in report.not_pruned
    }
