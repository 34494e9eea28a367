"""Apply a plan to a model of the original shape: slice its tensors, fold constants, mend its layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compactmtl.errors import ArtifactError
from compactmtl.surgery.gather import install
from compactmtl.surgery.plan import BiasShift, Gather, Merge, Plan, Scale, Slice, signature

_MEND = "rebuild the model from the recipe that the plan was made for"


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """A smaller copy of `model`, edited as the plan says; `model` is left as it was.

    Applied to the trained model it keeps the function; applied to a freshly built one it gives the shapes
    that the compact weights load into. Raises ArtifactError where the plan was made for another model.
    """
    if signature(model) != plan.signature:
        raise ArtifactError(
            f"the plan was made for another model than this {type(model).__name__}: names or shapes differ",
            _MEND,
        )
    small = copy.deepcopy(model)
    with torch.no_grad():
        for merge in plan.merges:
            _merge(small, merge)
        for scale in plan.scales:
            _scale(small, scale)
        for cut in sorted(plan.slices, key=lambda cut: cut.groups == 1):  # grouped ones need all rows
            _slice(small, cut)
        for shift in plan.biases:
            _shift(small, shift)
    _mend_layers(small, plan)
    for gather in plan.gathers:
        _gather(small, gather)
    return small


def _gather(model: nn.Module, gather: Gather) -> None:
    module, _ = _owner(model, f"{gather.module}.weight")
    weight = _read(model, f"{gather.module}.weight")
    rows, columns = weight.shape[:2]
    inputs, outputs = gather.inputs, gather.outputs
    if (inputs is not None and len(inputs) != columns) or (outputs is not None and max(outputs) > rows):
        raise ArtifactError(
            f"the plan gathers channels of {gather.module} that its weight of shape {tuple(weight.shape)} does not have",
            _MEND,
        )
    install(module, inputs, outputs, gather.constants)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return model.get_submodule(path), leaf
    except AttributeError as error:
        raise ArtifactError(f"the plan edits {name}, which the model does not have", _MEND) from error


def _read(model: nn.Module, name: str) -> Tensor:
    owner, leaf = _owner(model, name)
    value: Tensor | None = owner._parameters.get(leaf)
    if value is None:
        value = owner._buffers.get(leaf)
    if value is None:
        raise ArtifactError(f"the plan edits {name}, which the model does not have", _MEND)
    return value


def _replace(model: nn.Module, old: Tensor, new: Tensor) -> None:
    """Put `new` wherever the model holds `old`: a tied tensor stays tied."""
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in stores:
            for leaf, value in store.items():
                if value is old:
                    store[leaf] = new


def _slice(model: nn.Module, cut: Slice) -> None:
    value = _read(model, cut.tensor)
    if cut.dim >= value.ndim or value.shape[cut.dim] != cut.size:
        raise ArtifactError(
            f"the plan expects {cut.size} entries in dimension {cut.dim} of {cut.tensor}, "
            f"whose shape is {tuple(value.shape)}",
            _MEND,
        )
    if max(cut.keep) >= cut.size * cut.groups or len(set(cut.keep)) != len(cut.keep):
        raise ArtifactError(
            f"the plan keeps indices of {cut.tensor} that are out of range or repeated (size {cut.size})",
            "the plan is damaged: run `compactmtl compact` again",
        )
    index = torch.tensor(cut.keep, device=value.device)
    if cut.groups == 1:
        _replace(model, value, value.detach().index_select(cut.dim, index).contiguous())
        return
    if value.shape[0] % cut.groups or len(cut.keep) % cut.groups:
        raise ArtifactError(
            f"the plan keeps unequal numbers of inputs in the {cut.groups} groups of {cut.tensor}",
            "the plan is damaged: run `compactmtl compact` again",
        )
    rows = value.detach().reshape(cut.groups, -1, *value.shape[1:])
    each = index.reshape(cut.groups, -1) % cut.size
    kept = torch.cat([rows[group].index_select(1, each[group]) for group in range(cut.groups)])
    _replace(model, value, kept.contiguous())


def _scale(model: nn.Module, scale: Scale) -> None:
    value = _read(model, scale.tensor)
    if max(scale.rows) >= value.shape[0]:
        raise ArtifactError(f"the plan scales rows of {scale.tensor} that it does not have", _MEND)
    rows = list(scale.rows)
    value[rows] = (value[rows].double() * scale.factor).to(value.dtype)


def _merge(model: nn.Module, merge: Merge) -> None:
    weight = _read(model, merge.weight)
    if max(merge.carrier, *merge.sources) >= weight.shape[1]:
        raise ArtifactError(
            f"the plan merges inputs of {merge.weight} that are out of range (it has {weight.shape[1]})",
            "the plan is damaged: run `compactmtl compact` again",
        )
    exact = weight.detach().double()
    ratios = torch.tensor(merge.ratios, dtype=torch.float64, device=weight.device)
    sources = exact[:, list(merge.sources)]
    exact[:, merge.carrier] += (sources * ratios.view(1, -1, *[1] * (weight.ndim - 2))).sum(1)
    weight.copy_(exact)


def _shift(model: nn.Module, shift: BiasShift) -> None:
    owner, leaf = _owner(model, shift.bias)
    values = torch.tensor(shift.values, dtype=torch.float64)
    if shift.new:
        weight = next(owner.parameters(recurse=False))
        owner._parameters[leaf] = nn.Parameter(values.to(weight))
        return
    bias = _read(model, shift.bias)
    if bias.shape != values.shape:
        raise ArtifactError(
            f"the plan shifts {len(values)} entries of {shift.bias}, whose shape is {tuple(bias.shape)}",
            _MEND,
        )
    bias.copy_(bias.double() + values.to(bias.device))


def _mend_layers(model: nn.Module, plan: Plan) -> None:
    """Make every layer's own numbers agree with the shapes of its tensors."""
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            module.groups = plan.groups.get(name, module.groups)
            out_dim, in_dim = (1, 0) if module.transposed else (0, 1)
            outer, inner = module.weight.shape[out_dim], module.weight.shape[in_dim]
            module.out_channels = outer * (module.groups if module.transposed else 1)
            module.in_channels = inner * (1 if module.transposed else module.groups)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _BatchNorm):
            counted = module.weight if module.weight is not None else module.running_mean
            if counted is not None:
                module.num_features = counted.shape[0]
    modules = dict(model.named_modules())
    for path, attributes in plan.attributes.items():
        for name, value in attributes.items():
            old: object = vars(modules[path]).get(name) if path in modules else None
            if type(old) is not int and not isinstance(old, (list, tuple)):
                raise ArtifactError(f"the plan sets {path}.{name}, which the model does not have", _MEND)
            new = list(value) if isinstance(old, list) and isinstance(value, tuple) else value
            setattr(modules[path], name, new)
