"""Index gather: a layer reads and writes only what it needs where the tensor around it has to keep more channels.

Members of a residual sum often disagree on which channels are dead, so that the sum keeps them all. A layer then picks
the inputs that it reads by index, and its outputs are spread over the kept channels again, constants filled in. That
moves memory, so that it is done only where the MACs saved are predicted to take longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compactmtl.graph.calls import arguments
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.effect import Product
from compactmtl.graph.space import Flags
from compactmtl.surgery.analyse import carriers_of

MACS_PER_MOVE = (
    32.0  # multiply-accumulates in the time of reading and writing one number, tools/bench_gather.py
)


@dataclass(frozen=True)
class Thinned:
    """The entries that a layer keeps of its inputs and outputs, counted as before surgery; None keeps all alive ones.

    `constants` (outputs,) is what the layer would have written where it does not compute any more.
    """

    inputs: Flags | None
    outputs: Flags | None
    constants: NDArray[np.float64]


def choose_thinned(graph: ChannelGraph, model: nn.Module, alive: Flags, align: int) -> dict[str, Thinned]:
    """By the weight's name, the layers for which an index gather is predicted to be faster."""
    products = graph.products
    uses = Counter(name for p in products for name in (p.weight, p.bias) if name is not None)
    scaled = {attention.maker for attention in graph.scaled.values()}
    chosen = {}
    for product in products:
        if product.weight is None or not _can_gather(product, model):
            continue
        if all(uses[name] == 1 for name in (product.weight, product.bias) if name is not None):
            thinned = _cheapest(graph, product, alive, align, product.node not in scaled)
            if thinned is not None:
                chosen[product.weight] = thinned
    return chosen


def _can_gather(product: Product, model: nn.Module) -> bool:
    """Plain layers that are called as modules: their inputs and outputs can be caught."""
    path, _, leaf = (product.weight or "").rpartition(".")
    stack = product.node.meta.get("nn_module_stack") or {}
    called = [entry[0] for entry in stack.values()]
    if product.groups != 1 or product.inputs is None or leaf != "weight" or not called or called[-1] != path:
        return False
    weight_node = arguments(product.node)["weight"]
    module = model.get_submodule(path)
    plain = isinstance(module, (_ConvNd, nn.Linear)) and not isinstance(module, _ConvTransposeNd)
    return plain and len(weight_node.users) == 1


def _cheapest(
    graph: ChannelGraph, product: Product, alive: Flags, align: int, free_outputs: bool
) -> Thinned | None:
    node = product.node
    assert product.inputs is not None
    weight = graph.tensor(arguments(node)["weight"])
    nonzero: Flags = (
        (weight.detach() != 0).flatten(2).any(2).cpu().numpy()
        if weight.ndim > 2
        else (weight.detach() != 0).cpu().numpy()
    )
    alive_in, alive_out = alive[graph.labels[product.inputs]], alive[graph.labels[product.outputs]]
    none = np.zeros(len(product.outputs), dtype=bool)
    fixed = graph.constant(node)
    needed_out = alive_out & graph.used(node) & ~fixed if free_outputs else alive_out
    needed_in = alive_in & nonzero[needed_out].any(0)
    if product.node_in is not None:
        needed_in &= ~_foldable(graph, product)
        needed_in[list(carriers_of(graph, product, alive).values())] = True
    needed_in, needed_out = (
        _aligned(needed, kept, align) for needed, kept in ((needed_in, alive_in), (needed_out, alive_out))
    )
    kernel = float(np.prod(weight.shape[2:]))
    places_out = product.scale / kernel
    places_in = float(np.prod(graph.shape(arguments(node)["input"]))) / len(product.inputs)
    best: tuple[float, Thinned | None] = (product.scale * float(alive_in.sum() * alive_out.sum()), None)
    for thin_in in (False, True):
        for thin_out in (False, True):
            inputs, outputs = needed_in if thin_in else alive_in, needed_out if thin_out else alive_out
            if (thin_in and inputs.sum() == alive_in.sum()) or (
                thin_out and outputs.sum() == alive_out.sum()
            ):
                continue
            moves = thin_in * inputs.sum() * places_in + thin_out * alive_out.sum() * places_out
            cost = product.scale * float(inputs.sum() * outputs.sum()) + MACS_PER_MOVE * float(moves)
            if cost < best[0]:
                known = fixed & graph.used(node)
                values = np.where(known, graph.values(node), 0.0) if known.any() else np.zeros(len(none))
                best = (cost, Thinned(inputs if thin_in else None, outputs if thin_out else None, values))
    return best[1]


def _foldable(graph: ChannelGraph, product: Product) -> Flags:
    """Constant inputs that the layer can do without: zeros, and where nothing is padded what goes into its bias."""
    node = product.node_in
    assert node is not None
    constant, zero = graph.constant(node), graph.zero(node)
    return constant if product.folds and not product.padded else zero


def _aligned(needed: Flags, kept: Flags, align: int) -> Flags:
    """At least one entry, and a multiple of `align` where so many are kept."""
    count = max(int(needed.sum()), 1)
    aligned = min(-(-count // align) * align, int(kept.sum()))
    filled = np.flatnonzero(kept & ~needed)[: aligned - int(needed.sum())]
    result = needed.copy()
    result[filled] = True
    return result


def install(
    module: nn.Module, inputs: Sequence[int] | None, outputs: Sequence[int] | None, constants: Sequence[float]
) -> None:
    """Make a layer gather its inputs and spread its outputs.

    `inputs` are the channels that it reads of its input tensor. `outputs` gives for each channel of its output tensor
    the layer's own output, or their number where it has none: there `constants` (empty: zeros) are written.
    Indices are buffers that are not saved: state_dict keeps its names, and the plan holds them.
    """
    weight = next(module.parameters(recurse=False))
    if inputs is not None:
        module.register_buffer("gather_index", torch.tensor(inputs, device=weight.device), persistent=False)
        module.register_forward_pre_hook(_gather)
    if outputs is not None:
        module.register_buffer("spread_index", torch.tensor(outputs, device=weight.device), persistent=False)
        values = torch.tensor(constants, dtype=torch.float64).to(weight) if any(constants) else None
        module.register_buffer("spread_constants", values, persistent=False)
        module.register_forward_hook(_spread)


def _channel(module: nn.Module, value: Tensor) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return value.ndim - 1 if isinstance(module, nn.Linear) else value.ndim - weight.ndim + 1


def _gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    index = module.gather_index
    assert isinstance(index, Tensor)
    return (args[0].index_select(_channel(module, args[0]), index), *args[1:])


def _spread(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    index, constants = module.spread_index, module.spread_constants
    assert isinstance(index, Tensor)
    dim = _channel(module, output)
    after = output.ndim - 1 - dim
    spread = nn.functional.pad(output, (0, 0) * after + (0, 1)).index_select(dim, index)
    if isinstance(constants, Tensor):
        spread = spread + constants.view(-1, *[1] * after)
    return spread
