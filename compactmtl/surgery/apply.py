"""Apply a plan to a model of the original shape: slice its tensors, fold constants, mend its layers."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from compactmtl.errors import ArtifactError, SurgeryError
from compactmtl.graph.copies import copy_model, tensors_of
from compactmtl.surgery import full_width, recurrent
from compactmtl.surgery.contraction import contract_layers
from compactmtl.surgery.gather import install, install_span
from compactmtl.surgery.join import join_layers
from compactmtl.surgery.outputs import select
from compactmtl.surgery.plan import (
    BiasShift,
    FullWidthEdit,
    Gather,
    Merge,
    Plan,
    Scale,
    Slice,
    Span,
    signature,
)
from compactmtl.surgery.stand_ins import Absent, constant, put

_MEND = "rebuild the model from the recipe that the plan was made for"


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a smaller copy of `model`, edited as the plan says. `model` is left as it was.

    Applied to the trained model, the plan keeps the function. Applied to a freshly built model, it gives the shapes that
    the compact weights are loaded into.

    Raises ArtifactError where the plan was made for another model.
    """
    if signature(model) != plan.signature:
        raise ArtifactError(
            f"the plan was made for another model than this {type(model).__name__}: names or shapes differ",
            _MEND,
        )
    copied = copy_model(model, share=not plan.fused)
    if plan.outputs:
        select(copied, plan.outputs)
    for known in plan.constants:
        _module(copied, known.module, f"makes a constant of {known.module}")
        put(copied, known.module, constant(copied, known))
    for path, shape in plan.absent.items():
        _module(copied, path, f"takes out {path}")
        put(copied, path, Absent(shape))
    try:
        contract_layers(copied, plan.fused, plan.contracted)
    except KeyError as error:
        raise ArtifactError(f"the plan contracts {error}, which the model does not have", _MEND) from error
    small = _Editor(copied)
    with torch.no_grad():
        for merge in plan.merges:
            _merge(small, merge)
        for scale in plan.scales:
            _scale(small, scale)
        _slice_all(small, plan)
        for shift in plan.biases:
            _shift(small, shift)
    small.separate(model)
    _mend_layers(small.model, plan)
    for gather in plan.gathers:
        _gather(small, gather)
    for span in plan.spans:
        _span(small, span)
    for edit in plan.full_width:
        _run_full_width(small.model, edit)
    join_layers(small.model, plan)
    return small.model


def slice_in_place(model: nn.Module, plan: Plan) -> None:
    """Edit `model` itself as a plan of slices says: its modules stay, their parameters are replaced where they are cut.

    For a network in training, which others hold on to. Apply the plan to a copy first: a plan that does not fit leaves
    the model half edited. Raises ArtifactError where the plan was made for another model, SurgeryError where it holds more than slices.
    """
    if plan.more_than_slices:
        raise SurgeryError("only a plan of slices can be applied in place", "use apply_plan, which copies")
    if signature(model) != plan.signature:
        raise ArtifactError(
            f"the plan was made for another model than this {type(model).__name__}: names or shapes differ",
            _MEND,
        )
    with torch.no_grad():
        _slice_all(_Editor(model), plan)
    _mend_layers(model, plan)


class _Editor:
    """A model that shares its tensors with another one until they are replaced: what goes is never copied."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for module in model.modules():
            stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
            for store in stores:
                for leaf, value in store.items():
                    if isinstance(value, Tensor):
                        self._places.setdefault(id(value), []).append((store, leaf))

    def owner(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        try:
            return self.model.get_submodule(path), leaf
        except AttributeError as error:
            raise ArtifactError(f"the plan edits {name}, which the model does not have", _MEND) from error

    def read(self, name: str) -> Tensor:
        owner, leaf = self.owner(name)
        value: Tensor | None = owner._parameters.get(leaf)
        if value is None:
            value = owner._buffers.get(leaf)
        if value is None and isinstance(attribute := vars(owner).get(leaf), Tensor):
            value = attribute  # neither saved nor trained, but read by the forward
        if value is None:
            raise ArtifactError(f"the plan edits {name}, which the model does not have", _MEND)
        return value

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Put `new` wherever the model holds `old`: a tied tensor stays tied."""
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        places = self._places.pop(id(old))
        for store, leaf in places:
            store[leaf] = new
        self._places[id(new)] = places

    def separate(self, original: nn.Module) -> None:
        """Copy what is still shared with `original`."""
        for value in tensors_of(original):
            if id(value) in self._places:
                self.replace(value, value.detach().clone())


def _slice_all(small: _Editor, plan: Plan) -> None:
    for cut in sorted(plan.slices, key=lambda cut: cut.groups == 1):  # grouped ones need all rows
        _slice(small, cut)


def _slice(small: _Editor, cut: Slice) -> None:
    value = small.read(cut.tensor)
    if cut.dim >= value.ndim or value.shape[cut.dim] != cut.size:
        raise ArtifactError(
            f"the plan expects {cut.size} entries in dimension {cut.dim} of {cut.tensor}, "
            f"whose shape is {tuple(value.shape)}",
            _MEND,
        )
    index = torch.tensor(cut.keep, device=value.device)
    if cut.groups == 1:
        small.replace(value, value.detach().index_select(cut.dim, index).contiguous())
        return
    counts = Counter(kept // cut.size for kept in cut.keep)
    if cut.dim != 1 or value.shape[0] % cut.groups or len(set(counts.values())) != 1:
        raise ArtifactError(
            f"the plan keeps unequal numbers of inputs in the {cut.groups} groups of {cut.tensor}",
            "the plan is damaged: run `compactmtl compact RUN` again",
        )
    rows = value.detach().reshape(cut.groups, -1, *value.shape[1:])
    # A group that goes whole reads whatever it likes: its rows go next.
    first = torch.arange(next(iter(counts.values())), device=value.device)
    each = [index[index // cut.size == group].sort().values % cut.size for group in range(cut.groups)]
    each = [own if len(own) else first for own in each]
    kept = torch.cat([rows[group].index_select(1, own) for group, own in enumerate(each)])
    small.replace(value, kept.contiguous())


def _scale(small: _Editor, scale: Scale) -> None:
    value = small.read(scale.tensor)
    if max(scale.rows) >= value.shape[0]:
        raise ArtifactError(f"the plan scales rows of {scale.tensor} that it does not have", _MEND)
    rows = list(scale.rows)
    scaled = value.detach().clone()
    scaled[rows] = (scaled[rows].double() * scale.factor).to(value.dtype)
    small.replace(value, scaled)


def _merge(small: _Editor, merge: Merge) -> None:
    weight = small.read(merge.weight)
    first, end = merge.rows or (0, len(weight))
    if weight.ndim < 2 or max(merge.carrier, *merge.sources) >= weight.shape[1] or end > len(weight):
        raise ArtifactError(
            f"the plan merges inputs of {merge.weight} that are out of range (shape {tuple(weight.shape)})",
            "the plan is damaged: run `compactmtl compact RUN` again",
        )
    merged = weight.detach().clone()
    ratios = torch.tensor(merge.ratios, dtype=torch.float64, device=weight.device)
    rows = merged[first:end]  # a view
    added = rows[:, list(merge.sources)].double() * ratios.view(1, -1, *[1] * (weight.ndim - 2))
    rows[:, merge.carrier] = (rows[:, merge.carrier].double() + added.sum(1)).to(weight.dtype)
    small.replace(weight, merged)


def _shift(small: _Editor, shift: BiasShift) -> None:
    values = torch.tensor(shift.values, dtype=torch.float64)
    if shift.new:
        owner, leaf = small.owner(shift.bias)
        if owner._parameters.get(leaf, values) is not None or not has_bias_slot(owner):
            raise ArtifactError(f"the plan adds {shift.bias}, which the model has no empty place for", _MEND)
        weight = small.read(f"{shift.bias.removesuffix(leaf)}weight")
        if len(values) != weight.shape[0]:
            raise ArtifactError(
                f"the plan adds {len(values)} entries as {shift.bias} to {weight.shape[0]} channels", _MEND
            )
        owner._parameters[leaf] = nn.Parameter(values.to(weight))
        return
    bias = small.read(shift.bias)
    if bias.shape != values.shape:
        raise ArtifactError(
            f"the plan shifts {len(values)} entries of {shift.bias}, whose shape is {tuple(bias.shape)}",
            _MEND,
        )
    small.replace(bias, (bias.detach().double() + values.to(bias.device)).to(bias.dtype))


def has_bias_slot(module: nn.Module) -> bool:
    """Whether a bias put into this module, which has none, is added to its output."""
    return isinstance(module, (nn.Linear, _ConvNd)) and "bias" in module._parameters


def _gather(editor: _Editor, gather: Gather) -> None:
    module, rows, columns = _sizes(editor, gather.module, gather.inputs is not None)
    inputs, outputs = gather.inputs, gather.outputs
    if (inputs is not None and len(inputs) != columns) or (outputs is not None and max(outputs) > rows):
        raise _unfit(gather.module, rows, columns)
    install(module, inputs, outputs, gather.constants)


def _span(editor: _Editor, span: Span) -> None:
    module, rows, columns = _sizes(editor, span.module, span.inputs is not None)
    lengths = [None if own is None else own[1] - own[0] for own in (span.outputs, span.inputs)]
    if any(length not in (None, own) for length, own in zip(lengths, (rows, columns), strict=True)):
        raise _unfit(span.module, rows, columns)
    install_span(module, span.inputs, span.outputs, span.size, span.constants)


def _sizes(editor: _Editor, path: str, reads: bool) -> tuple[nn.Module, int, int]:
    """A layer with its numbers of outputs and inputs; a batch norm has outputs alone, and `reads` nothing."""
    module = _module(editor.model, path, f"takes some channels of {path}")
    if isinstance(module, _BatchNorm) and not reads:
        counted = module.weight if module.weight is not None else module.running_mean
        if counted is not None:
            return module, counted.shape[0], 0
    if not isinstance(module, (nn.Linear, _ConvNd)):
        raise ArtifactError(f"the plan takes some channels of {path}, which is no such layer", _MEND)
    weight = editor.read(f"{path}.weight")
    return module, weight.shape[0], weight.shape[1]


def _unfit(path: str, rows: int, columns: int) -> ArtifactError:
    return ArtifactError(
        f"the plan takes channels of {path} that do not fit its {rows} outputs and {columns} inputs",
        "the plan is damaged: run `compactmtl compact RUN` again",
    )


def _run_full_width(model: nn.Module, edit: FullWidthEdit) -> None:
    module = _module(model, edit.module, f"runs {edit.module} at full width")
    if any(edit.size not in parameter.shape for parameter in module.parameters() if parameter.numel() > 1):
        raise ArtifactError(
            f"the plan runs {edit.module} at its full width of {edit.size} channels, which its parameters do not have",
            _MEND,
        )
    parameters = chain(module.parameters(), model.parameters())
    full_width.install(module, edit, next((parameter.device for parameter in parameters), None))


def _mend_layers(model: nn.Module, plan: Plan) -> None:
    """Make every layer's own numbers agree with the shapes of its tensors."""
    for name, groups in plan.groups.items():
        layer = _module(model, name, f"regroups {name}")
        if not isinstance(layer, _ConvNd) or layer.groups == 1 or layer.weight.shape[0] % groups:
            raise ArtifactError(f"the plan gives {groups} groups to {name}, which it does not fit", _MEND)
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            module.groups = plan.groups.get(name, module.groups)
            out_dim, in_dim = (1, 0) if module.transposed else (0, 1)
            outer, inner = module.weight.shape[out_dim], module.weight.shape[in_dim]
            module.out_channels = outer * (module.groups if module.transposed else 1)
            module.in_channels = inner * (1 if module.transposed else module.groups)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, (_BatchNorm, _InstanceNorm)):
            counted = module.weight if module.weight is not None else module.running_mean
            if counted is not None:
                module.num_features = counted.shape[0]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.shape[0]
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            recurrent.mend(module)
    for path, attributes in plan.attributes.items():
        owner = _module(model, path, f"sets attributes of {path or 'the model'}")
        for name, value in attributes.items():
            old: object = vars(owner).get(name)
            if type(old) is not int and not isinstance(old, (list, tuple)):
                raise ArtifactError(f"the plan sets {path}.{name}, which the model does not have", _MEND)
            new = list(value) if isinstance(old, list) and isinstance(value, tuple) else value
            setattr(owner, name, new)


def _module(model: nn.Module, path: str, deed: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ArtifactError(f"the plan {deed}, which the model does not have", _MEND) from error
