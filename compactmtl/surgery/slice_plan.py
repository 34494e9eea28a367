"""Removing channels that are zero from a model in training, and putting them back as zeros.

Only slices: no constant is folded, for that is exact in eval mode alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.config.words import key
from compactmtl.errors import SurgeryError
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.groups import GroupFamily
from compactmtl.graph.space import Flags
from compactmtl.surgery.analyse import Constraints, choose_alive
from compactmtl.surgery.equal_widths import find_equal_widths
from compactmtl.surgery.plan import Plan, Slice, signature
from compactmtl.surgery.write import write_plan

Kept = dict[tuple[str, int], NDArray[np.int64]]


def plan_slices(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    families: Sequence[GroupFamily],
    dead: Sequence[Flags],
    keep: Sequence[str] = (),
    *,
    equal_widths: bool = False,
) -> Plan:
    """The slices that remove the groups flagged in `dead`, bool (n,) a family, from a model of plain layers.

    A channel goes where it is zero wherever it is read, in train mode too: what would need a constant folded, a
    scale made up for, a grouped convolution cut or a norm over the channel run at full width stays. Channels of parameters whose names begin with one of `keep`
    stay as well. With `equal_widths` tensors that a forward may take for as wide as one another keep as many channels, and heads
    stay as many. The plan is empty where nothing can go. Raises SurgeryError where the model cannot be traced.
    """
    graph = ChannelGraph.trace(model, example_inputs)
    pinned = ~_classes(graph, families, dead) | graph.nonzero_classes()
    pinned |= graph.counted_classes(in_groups=False)  # a norm that counts them is more than sliced
    for binding in graph.bindings:
        if binding.groups > 1 or binding.name.startswith(tuple(keep)):
            pinned[graph.labels[binding.ids]] = True
    constraints = Constraints(
        unbiased=frozenset(product.name for product in graph.products),
        whole_units=not equal_widths,
        equal_widths=tuple(find_equal_widths(graph)) if equal_widths else (),
        whole_norm_groups=True,
    )
    plan = write_plan(graph, model, choose_alive(graph, pinned, constraints))
    if plan.scales:
        for scaled in graph.scaled.values():
            pinned[graph.labels[scaled.ids]] = True
        plan = write_plan(graph, model, choose_alive(graph, pinned, constraints))
    if plan.merges or plan.biases or plan.scales or any(cut.groups > 1 for cut in plan.slices):
        raise SurgeryError(
            "channels at zero cannot be removed from this model by slices alone",
            f"leave out {key('sparsity.shrink_every')}",
        )
    return plan


def _classes(graph: ChannelGraph, families: Sequence[GroupFamily], dead: Sequence[Flags]) -> Flags:
    classes = np.zeros(graph.classes, dtype=bool)
    for family, flags in zip(families, dead, strict=True):
        for member in family.members if not family.branch else ():  # a branch leaves in the final surgery
            binding = graph.binding(member.parameter, member.dim)
            if binding is not None:
                classes[graph.labels[binding.ids[member.indices[flags].ravel()]]] = True
    return classes


def compose(first: Plan, second: Plan) -> Plan:
    """One plan of slices that does what `first` and then `second` do.

    Raises SurgeryError where either holds more than slices of whole tensors.
    """
    for plan in (first, second):
        if plan.more_than_slices:
            raise SurgeryError("only plans of slices can be composed", "apply them one after the other")
    slices = {(cut.tensor, cut.dim): cut for cut in first.slices}
    for cut in second.slices:
        before = slices.get((cut.tensor, cut.dim))
        if cut.groups > 1 or (before is not None and before.groups > 1):
            raise SurgeryError(
                f"{cut.tensor} is grouped: its slices cannot be composed", "apply them one by one"
            )
        if before is None:
            slices[cut.tensor, cut.dim] = cut
            continue
        keep = tuple(before.keep[index] for index in cut.keep)
        slices[cut.tensor, cut.dim] = Slice(tensor=cut.tensor, dim=cut.dim, size=before.size, keep=keep)
    return Plan(
        signature=first.signature,
        slices=tuple(slices.values()),
        groups={**first.groups, **second.groups},
        attributes={
            name: {**first.attributes.get(name, {}), **second.attributes.get(name, {})}
            for name in {**first.attributes, **second.attributes}
        },
    )


def nothing(model: nn.Module) -> Plan:
    """The plan that leaves a model as it is."""
    return Plan(signature=signature(model))


def kept_indices(plan: Plan) -> Kept:
    """What stays of each dimension of a tensor that a plan of slices cuts."""
    return {(cut.tensor, cut.dim): np.array(cut.keep, dtype=np.int64) for cut in plan.slices}


def cut(name: str, value: Tensor, kept: Mapping[tuple[str, int], NDArray[np.int64]]) -> Tensor:
    """The entries of a tensor, such as an optimizer's moment of parameter `name`, that stay."""
    for dim in range(value.dim()):
        indices = kept.get((name, dim))
        if indices is not None:
            value = value.index_select(dim, torch.from_numpy(indices).to(value.device))
    return value


def put_back(
    name: str, value: Tensor, shape: Sequence[int], kept: Mapping[tuple[str, int], NDArray[np.int64]]
) -> Tensor:
    """A tensor of the original `shape` with zeros where entries were removed; the inverse of `cut`.

    A removed channel's running variance is 1, as a fresh norm has it.
    """
    for dim in range(value.dim()):
        indices = kept.get((name, dim))
        if indices is not None:
            size = [shape[dim] if d == dim else length for d, length in enumerate(value.shape)]
            whole = value.new_full(size, 1 if name.endswith("running_var") else 0)
            value = whole.index_copy_(dim, torch.from_numpy(indices).to(value.device), value)
    if list(value.shape) != list(shape):
        raise SurgeryError(f"{name} has shape {tuple(value.shape)}, {tuple(shape)} was expected", "")
    return value
