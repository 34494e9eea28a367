"""Surgery on any model: contract factorized layers, remove dead channels, prove that the function is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from compactmtl.errors import CompactError, SurgeryError
from compactmtl.graph import ChannelGraph, cost
from compactmtl.graph.borrow import trainable
from compactmtl.graph.copies import copy_model
from compactmtl.graph.float32 import float32_products
from compactmtl.graph.inputs import Arguments, copied
from compactmtl.graph.stages import Tracing, first_line
from compactmtl.graph.threads import one_thread
from compactmtl.graph.trace import check_inputs, check_model, trace
from compactmtl.graph.unreached import CHOICES, Unreached, unreached_modules
from compactmtl.overparam import contract
from compactmtl.surgery.contraction import contract_layers, find_attention, find_branched, find_computed
from compactmtl.surgery.depth import shorten
from compactmtl.surgery.not_pruned import ROLLED_BACK, not_pruned
from compactmtl.surgery.outputs import Name, check_outputs, remove_unread, select
from compactmtl.surgery.plan import Plan, signature
from compactmtl.surgery.prove import Proof, Reference, compare, holder, reference
from compactmtl.surgery.report import LayerChange, SurgeryReport, layer_changes
from compactmtl.surgery.rows import Row, after_joins, find_rows, rejoin
from compactmtl.surgery.search import Search
from compactmtl.surgery.timed import Times, Timing

ROUNDED = 1e-4  # largest relative error where weights are computed in float32 once instead of at every call


@dataclass(frozen=True)
class CompactResult:
    """The small model (eval mode, trainable), the edits that made it, and what changed with its proof."""

    model: nn.Module
    plan: Plan
    report: SurgeryReport


@one_thread()
@trainable
def compact(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    align: int = 1,
    tolerance: float | None = None,
    gather: bool = False,
    unreached: Unreached = "keep",
    outputs: Sequence[Name] = (),
    join: bool = True,
    table: Times | None = None,
) -> CompactResult:
    """Remove every channel that has no effect, without changing the function of the model in eval mode.

    The result is a new module; `model` is left as it was. Factorized layers are contracted first. A channel that cannot be
    removed exactly stays, and the report lists it with the reason. An edit that fails the proof is rolled back.

    Args:
        model: any module that `torch.export` can trace.
        example_inputs: positional arguments, or a mapping of keyword arguments: tensors, and lists and dicts of them.
        align: keep channel counts at multiples of this number where channels stay.
        tolerance: largest error of the proof as a share of the output's largest value. By default 1e-5 in float64, and
            1e-4 where only a narrower type fits.
        gather: let a layer select its channels by index where the tensor around it keeps more of them, no order puts
            those in one piece, and the saved MACs are predicted to outweigh the memory that is moved.
        unreached: what to do about modules that the forward pass does not reach in eval mode on these inputs, such as
            auxiliary heads and heads of other tasks: "keep" keeps the channels that they may read, so that they still
            run; "report" only names them in the report; "error" raises.
        outputs: the outputs to keep, by name where the model's forward gives a dict, by position where it gives a list or
            tuple; by default all. The others leave, with the modules and channels that only they read. Their modules'
            places hold zeros.
        join: make one layer of layers in a row, with nothing between them but batch norms, where that has fewer MACs, and let
            layers and norms leave that hand on their input as it is.
        table: a latency table of this network, such as `compactmtl.latency.latency_table` makes. Dead channels then stay where
            without them the network is predicted to be slower, and so do layers that an index gather would slow down; the
            report's `timing` says which, and what each would have saved.

    Raises:
        SurgeryError: where the model cannot be traced, gives different outputs at every run, or lacks one of `outputs`, and for an option
            that is none.
        ConfigError: where `table` is of another network, batch or size of images.
    """
    _check_options(align, tolerance, gather, unreached, join, table)
    with float32_products():  # TF32 would fail the proof where a model is too large for float64
        return _compact(model, example_inputs, align, tolerance, gather, unreached, outputs, join, table)


def _check_options(
    align: object, tolerance: Any, gather: object, unreached: object, join: object, table: object
) -> None:
    if isinstance(align, bool) or not isinstance(align, int) or align < 1:
        raise SurgeryError(
            f"align must be a whole number of at least 1, found {align}", "use 1 for no alignment"
        )
    if unreached not in CHOICES:
        raise SurgeryError(f"unreached is {unreached!r}", f"use one of {', '.join(CHOICES)}")
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and tolerance >= 0):
        raise SurgeryError(
            f"tolerance must be a number of at least 0, found {tolerance!r}", "leave it out for the default"
        )
    if table is not None and not hasattr(table, "check_inputs"):
        raise SurgeryError(
            f"table has to be a latency table, found {type(table).__name__}",
            "pass what compactmtl.latency.latency_table gives, or compactmtl.sparsity.LatencyTable.load(FILE)",
        )
    for name, value in (("gather", gather), ("join", join)):
        if not isinstance(value, bool):
            raise SurgeryError(f"{name} must be True or False, found {value!r}", "give one of the two")


def _compact(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    align: int,
    tolerance: float | None,
    gather: bool,
    unreached: Unreached,
    outputs: Sequence[Name],
    join: bool,
    table: Times | None,
) -> CompactResult:
    started = time.perf_counter()
    check_model(model)
    # A forward may write into its inputs: the caller's stay as they were.
    inputs = copied(check_inputs(model, example_inputs))
    plain = _plain_copy(model)
    chosen = (
        _choose_outputs(plain, inputs, outputs, tolerance)
        if outputs
        else _Chosen(plain, reference(plain, inputs))
    )
    graph = ChannelGraph.trace(chosen.model, inputs, unreached)
    if table is not None:
        table.check_inputs(inputs)
        table.check(graph.widths(np.ones(graph.classes, dtype=bool)))
    tracing = graph.tracing
    short = shorten(chosen.model, inputs, graph, chosen.expected, tolerance)
    whole = layer_changes(graph, np.ones(graph.classes, dtype=bool)) if short else ()
    if short:
        graph = ChannelGraph.trace(short.model, inputs, unreached, graph.tracing.whole)
    form = short.model if short else chosen.model
    settings = _Settings(
        form, inputs, chosen.expected, align, tolerance, gather, unreached, graph.tracing, table
    )
    removal = _smallest(settings, graph)
    if join:
        removal = _joined(removal, chosen.expected)
    edits = {
        "align": align,
        "outputs": tuple(outputs),
        "absent": {**chosen.absent, **(short.absent if short else {})},
        "constants": short.constants if short else (),
        "signature": signature(plain),
    }
    plan, small = removal.plan.model_copy(update=edits), removal.model
    before, after = cost(plain, inputs), cost(small, inputs)
    report = SurgeryReport(
        macs_before=before.macs,
        macs_after=after.macs,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        layers=_with_those_that_left(whole, removal.layers) if short else removal.layers,
        proof=removal.proof,
        not_pruned=removal.not_pruned,
        unreached=removal.unreached,
        tracing=tracing,
        contracted=(*plan.fused, *plan.contracted),
        joined={one.into: one.layers for one in plan.joins},
        identities=plan.identities,
        timing=removal.timing,
        align=align,
        spans=tuple(dict.fromkeys(span.module for span in plan.spans)),
        gathers=tuple(dict.fromkeys(gather.module for gather in plan.gathers)),
        seconds=time.perf_counter() - started,
    )
    return CompactResult(small, plan, report)


@dataclass(frozen=True)
class _Chosen:
    """The model with the outputs that stay, what they were before anything left, and the modules that left."""

    model: nn.Module
    expected: Reference
    absent: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _choose_outputs(
    plain: nn.Module, inputs: Arguments, outputs: Sequence[Name], tolerance: float | None
) -> _Chosen:
    traced = trace(plain, inputs)  # which says what is wrong with a model or its inputs
    check_outputs(plain, inputs, outputs)
    unread = unreached_modules(plain, traced)
    model = copy_model(plain, share=True)
    select(model, outputs)
    expected = reference(model, inputs)
    holds = holder(copy_model(model, share=True), model, expected, tolerance)
    return _Chosen(model, expected, remove_unread(model, inputs, unread, holds))


@dataclass(frozen=True)
class _Settings:
    plain: nn.Module
    inputs: Sequence[Any]
    expected: Reference
    align: int
    tolerance: float | None
    gather: bool
    unreached: Unreached
    tracing: Tracing
    table: Times | None


@dataclass(frozen=True)
class _Removal:
    plan: Plan
    model: nn.Module
    proof: Proof
    layers: tuple[LayerChange, ...]
    not_pruned: dict[str, str]
    unreached: tuple[str, ...]
    rows: tuple[Row, ...]
    timing: Timing | None


def _joined(removal: _Removal, expected: Reference) -> _Removal:
    """With layers in a row joined where that takes fewer MACs."""
    rejoined = rejoin(removal.model, removal.rows, removal.plan, expected, removal.proof.tolerance)
    if rejoined is None:
        return removal
    return replace(
        removal,
        plan=removal.plan.model_copy(update={"identities": rejoined.identities, "joins": rejoined.joins}),
        model=rejoined.model,
        proof=rejoined.proof,
        layers=after_joins(removal.layers, rejoined),
    )


def _with_those_that_left(
    before: Sequence[LayerChange], after: Sequence[LayerChange]
) -> tuple[LayerChange, ...]:
    """All layers in the order of their calls, those that left whole with no channels."""
    left = {layer.name: layer for layer in after}
    return tuple(left.get(layer.name, replace(layer, after=(0, 0), macs_after=0)) for layer in before)


def _smallest(settings: _Settings, graph: ChannelGraph) -> _Removal:
    """Remove what is dead, with layers and blocks contracted first where that leads to a smaller model."""
    plain, inputs = settings.plain, settings.inputs
    removal = None
    computed = find_computed(graph, plain)
    if computed:
        removal = _remove(settings, computed=computed)
    # Where nothing is gained, layers with computed weights stay what they are.
    if removal is None or removal.plan.empty:
        removal = _remove(settings, graph=graph)
    assert removal is not None
    attentions = find_attention(plain)
    if attentions:
        split = _remove(settings, computed=[*removal.plan.contracted, *attentions])
        if split is not None and cost(split.model, inputs).macs < cost(removal.model, inputs).macs:
            removal = split
    blocks = find_branched(plain)
    fused = _remove(settings, fused=blocks) if blocks else None
    # A block of one branch is left as it is, for fused with its norm it costs the same.
    if fused is not None and cost(fused.model, inputs).macs < 0.99 * cost(removal.model, inputs).macs:
        return fused
    return removal


def _remove(
    settings: _Settings,
    fused: Sequence[str] = (),
    computed: Sequence[str] = (),
    graph: ChannelGraph | None = None,
) -> _Removal | None:
    """Remove what is dead, with the blocks `fused` and the layers `computed` contracted first.

    None where contracting does not keep the function (weights that the proof computes in float64 are rounded then), or the
    network does not run with the plain layers.
    """
    form, expected = settings.plain, settings.expected
    if fused:
        form = copy_model(form)
        try:
            contract_layers(form, fused)
            graph = ChannelGraph.trace(
                form.eval(), settings.inputs, settings.unreached, settings.tracing.whole
            )
        except Exception:  # it is another's code, for a use that may not be this one
            return None
        computed = find_computed(graph, form)
    if computed:
        form = copy_model(form, share=True)
        contract_layers(form, computed=computed)
        graph = None
    if form is not settings.plain:
        try:
            expected = reference(form, settings.inputs)
        except SurgeryError:  # a forward may read of a layer what its plain form does not have
            return None
    if graph is None:
        graph = ChannelGraph.trace(form, settings.inputs, settings.unreached, settings.tracing.whole)
    search = Search(graph, form, expected, settings.align, settings.tolerance)
    alive, rolled_back = search.search()
    timing = None
    if settings.table is not None:
        alive, timing = search.leave(alive, settings.table)
    # What is not reached, and not kept either, would read other channels than before and not say so.
    reorder = settings.unreached != "report" or not graph.unreached
    undone, slow = search.thin(alive, settings.gather, reorder, settings.table)
    rolled_back += undone
    timing = replace(timing, left=(*timing.left, *slow)) if timing is not None else None
    plan, small, proof = search.result(alive)
    if form is not settings.plain:
        allowed = settings.tolerance if settings.tolerance is not None else ROUNDED
        proof = compare(settings.expected, small, allowed)
        if not proof.passed:
            return None
    contracted = {
        "fused": tuple(fused),
        "contracted": tuple(computed),
        "signature": signature(settings.plain),
    }
    kept = {
        **not_pruned(graph, alive, search.reasons),
        **dict.fromkeys(rolled_back, ROLLED_BACK),
    }
    changes = layer_changes(graph, alive, search.thinned)
    rows = find_rows(graph, form)
    return _Removal(
        plan.model_copy(update=contracted), small, proof, changes, kept, graph.unreached, rows, timing
    )


def _plain_copy(model: nn.Module) -> nn.Module:
    try:
        return contract(model).eval()
    except CompactError:
        raise
    except Exception as error:
        raise SurgeryError(
            f"{type(model).__name__} could not be copied: {first_line(error)}",
            "drop attributes that copy.deepcopy does not take, such as open files, locks and results of a run",
        ) from error
