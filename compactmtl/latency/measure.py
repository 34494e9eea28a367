"""Measure a network's latency table: the network and random cuts of it are timed, each layer's staircase is fitted."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.artifacts.told import Progress
from compactmtl.backends import get_backend, load_target
from compactmtl.backends.fit import package_version
from compactmtl.backends.machine import cpu_name, nvidia_gpus
from compactmtl.config.target import Target
from compactmtl.config.words import key
from compactmtl.errors import ArtifactError, ConfigError, MachineError, MissingDependencyError, command
from compactmtl.graph import ChannelGraph
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import as_arguments, map_tensors
from compactmtl.latency.cuts import Cutter
from compactmtl.latency.fit import LayerPoints, Point, fitted_layer
from compactmtl.latency.memory import LEAST_NETWORKS, find_memory, total_weights, with_fetched
from compactmtl.latency.observe import Observed, observe
from compactmtl.latency.store import VERSION as STORE_VERSION
from compactmtl.latency.store import Store
from compactmtl.models.features import task_names
from compactmtl.overparam import contract
from compactmtl.sparsity.latency import VERSION, LatencyTable, Widths
from compactmtl.verify.steps import layer_of

BUSY = 0.5  # variation of a network's runs above which the machine is too busy to measure on
BUSY_CUTS = 0.5  # share of the networks that may be so


@dataclass(frozen=True)
class Settings:
    """How a table is measured."""

    cuts: int = 12  # random cuts that are timed beside the whole network
    points: int = 8  # measurements of a layer in the cache with which no cuts are needed
    seed: int = 0

    @property
    def alike(self) -> int:
        """Cuts of one share everywhere: they tell networks of few weights from networks of many."""
        return self.cuts // 3


def latency_table(
    model: nn.Module,
    example_inputs: Any,
    target: str | Path | Target = "onnxruntime-cpu",
    name: str | None = None,
    *,
    align: int | None = None,
    settings: Settings | None = None,
    store: Store | None = None,
    again: bool = False,
    progress: Progress = lambda line: None,
) -> LatencyTable:
    """The table of a model on a target, from the cache where its layers are known.

        table = latency_table(model, image, target="onnxruntime-cpu-int8")
        table.predict(model, image)  # milliseconds, of the model and of any cut of it

    Args:
        model: any module that `torch.export` can trace. Its weights do not matter, and it is left as it was. Factorized
            layers are timed as the plain ones that they are deployed as.
        example_inputs: a tensor, positional arguments, or a mapping of keyword arguments, batch first; a table is of their
            batch.
        target: a name (see `compactmtl targets list`), a file, or a `Target`.
        name: what the table calls it, by default what `target` says: of a `Target` its backend.
        align: the multiple of channels that the target's kernels are written for, by default the backend's own.
        settings: how much is measured.
        store: where measurements of layers are kept; by default the user's cache for this device, target and versions.
        again: measure anew, in place of what is kept of the network and its layers.

    Raises:
        ConfigError: where the network has no layers that could become narrower.
        ArtifactError: where the target's runtime tells no layer's time.
        MachineError: where the machine is too busy to measure on; what was measured is in the cache.
        MissingDependencyError: where the target cannot run here. Measure on its device, and hand the table in.
    """
    settings = settings or Settings()
    if name is None:
        name = target.backend if isinstance(target, Target) else str(target)
    target = target if isinstance(target, Target) else load_target(target)
    backend = get_backend(target.backend)
    backend.require(target)
    align = backend.channel_step(target) if align is None else align
    model = contract(model).cpu().eval()  # a copy
    inputs = tuple(map_tensors(lambda one: one.detach().cpu(), as_arguments(model, example_inputs)))
    graph = ChannelGraph.trace(model, inputs)
    full = graph.widths(np.ones(graph.classes, dtype=bool))
    if not full:
        raise ConfigError("the network has no convolution or linear layer", "nothing can be timed by layer")
    conditions = conditions_of(target, len(inputs[0]))
    store = store or Store(conditions)
    described = _described(model, inputs, full)
    operators = [str(node.target) for node in graph.calls]  # what runs beside the layers takes time, too
    key = _digest([VERSION, STORE_VERSION, described, operators, name, align, settings])
    weights = layer_weights(model, full)
    if not again and (known := store.table(key)) is not None:
        progress(f"{name}: the table of this network is in the cache")
        return known
    with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
        bench = _Bench(inputs, full, weights, target, Path(folder) / MODEL_FILE, store)
        progress(f"timing the whole network on {name}")
        whole = observe(model, inputs, full, target, bench.path)
        signatures = bench.describe(described, whole, again=again)
        observed = [whole]
        seen = [signatures[layer] for layer, ms in whole.layers.items() if ms > 0]
        if not seen:
            raise ArtifactError(
                f"the runtime's profile on {name} names none of the network's layers",
                "choose another target; with a module of your own, check that its layers are modules",
            )
        if any(len(store.points(one)) < settings.points for one in seen):
            progress("finding the channel groups")
            observed += bench.cuts(Cutter(model, inputs, align), settings, progress)
    busy = [one.variation for one in observed if one.variation > BUSY]
    if len(busy) > BUSY_CUTS * len(observed):
        raise MachineError(
            f"this machine is too busy to measure latency: of {len(busy)} of {len(observed)} networks the quartiles of the"
            f" runs lie more than {BUSY:.0%} of their median apart",
            "wait until it is idle and run the command again; what was measured between is kept",
        )
    facts = {
        "target": name,
        "device": str(conditions["device"]),
        "runtime": str(conditions["runtime"]),
        **network_facts(model, inputs, target),
    }
    points = {one: store.points(signatures[one]) for one in full}
    table = fitted(facts, observed, points, full, weights, align)
    return store.keep_table(key, table, anew=again)


def network_facts(model: nn.Module, inputs: tuple[Tensor, ...], target: Target) -> dict[str, Any]:
    """What a table says of the network and the target that it is of."""
    return {
        "backend": target.backend,
        "precision": target.precision,
        "threads": target.threads,
        "batch": len(inputs[0]),
        "image": tuple(inputs[0].shape[1:]),
        "tasks": task_names(model) or (),
    }


def fitted(
    facts: Mapping[str, Any],
    observed: Sequence[Observed],
    points: Mapping[str, Sequence[Point]],
    full: Widths,
    weights: Mapping[str, float],
    align: int,
) -> LatencyTable:
    """The table of networks that were timed, the whole one first, by what is known of each layer."""
    known = {layer: LayerPoints(width, weights[layer], tuple(points[layer])) for layer, width in full.items()}
    memory, forms = find_memory(list(known.values()), align)
    table = LatencyTable(
        version=VERSION,
        **facts,
        whole_ms=observed[0].wall,
        rest_ms=float(np.median([one.before for one in observed])),
        layers={
            layer: fitted_layer(with_fetched(one, memory, forms[one]), forms[one])
            for layer, one in known.items()
        },
        memory=memory,
    )
    table = agreeing(table, observed)
    errors = [abs(table.milliseconds(one.widths) / one.wall - 1) for one in observed]
    return table.model_copy(update={"error": float(np.median(errors))})


def agreeing(table: LatencyTable, observed: Sequence[Observed]) -> LatencyTable:
    """The table with all milliseconds times a factor, and the rest such that its networks add up to what they took, by least
    squares of relative errors: what a runtime does between its steps is in no layer and grows with all of them.

    With fewer than `LEAST_NETWORKS` it stays as it is.
    """
    quiet = [one for one in observed if one.variation <= BUSY]
    if len(quiet) < LEAST_NETWORKS:
        return table
    wall = np.array([one.wall for one in quiet])
    layers = np.array([table.milliseconds(one.widths) - table.rest_ms for one in quiet])
    (rest, factor), _ = nnls(np.stack([1 / wall, layers / wall], axis=1), np.ones(len(wall)))
    return table.scaled(float(factor)).model_copy(update={"rest_ms": float(rest)}) if factor else table


def check_target(table: LatencyTable, name: str, target: Target, *, anywhere: bool = False) -> None:
    """Raise ConfigError where a table that was handed in is of another backend, precision, batch or number of threads than
    a target; and, where the target runs here, of another device or version of the runtime, unless a table from `anywhere`
    will do.
    """
    wanted: dict[str, object] = {
        "precision": target.precision,
        **({"backend": target.backend} if table.backend else {}),
        **({"threads": target.threads} if table.threads is not None else {}),
        **({"batch": target.latency.batch} if table.batch is not None else {}),
    }
    # One from a kit is of a device elsewhere, on purpose.
    if (
        not anywhere
        and table.version >= 3
        and table.kit is None
        and get_backend(target.backend).availability(target).available
    ):
        here = conditions_of(target, target.latency.batch)
        wanted |= {"device": here["device"], "runtime": here["runtime"]}
    for fact, value in wanted.items():
        if (found := getattr(table, fact)) != value:
            raise ConfigError(
                f"the latency table is of {fact} {found}, and target {name} has {value}",
                "measure one there: " + command("latency", "RECIPE", "--target", name, "--out", "TABLE.json"),
            )


def require(target: Target, name: str) -> None:
    """Raise MissingDependencyError where a target can't run here, saying how its table is had from its device.

    ConfigError where it can nowhere.
    """
    try:
        get_backend(target.backend).require(target)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"the latency budget is for {name}, which can't run here: {error.message}",
            f"{error.hint}\nor measure on its device and name the table in the budget ({key('latency.table')}): "
            + command("latency", "RECIPE", "--target", name, "--out", "TABLE.json"),
        ) from error


def conditions_of(target: Target, batch: int) -> dict[str, object]:
    """What a measurement holds for: device, backend with its version and options, precision, threads, batch."""
    backend = get_backend(target.backend)
    versions = {name: package_version(name) for name in backend.packages}
    runtime = next((version for version in versions.values() if version), None) or torch.__version__
    own = target.model_dump(mode="json", include=set(target.own))
    return {
        "device": _device(target),
        "backend": target.backend,
        "runtime": runtime,
        "options": own,
        "precision": target.precision,
        "quantization": target.int8.model_dump(mode="json") if target.precision == "int8" else {},
        "threads": target.threads,
        "batch": batch,
    }


def _device(target: Target) -> str:
    if get_backend(target.backend).on_cpu(target):
        return cpu_name()
    gpus, _ = nvidia_gpus()
    return gpus[0] if gpus else cpu_name()


@dataclass
class _Bench:
    """Times networks of one shape on a target, and keeps what it finds of their layers."""

    inputs: tuple[Tensor, ...]
    full: Widths
    weights: Mapping[str, float]  # of each layer at full width
    target: Target
    path: Path  # of the model file in hand
    store: Store
    signatures: dict[str, str] = field(default_factory=dict)

    def describe(
        self, described: Mapping[str, list[object]], whole: Observed, *, again: bool
    ) -> dict[str, str]:
        """The signatures of the layers, from the whole network's file. A layer's full width is kept once: the same
        layers in many networks do not stand for widths that nobody measured. `again` forgets what was known of them.
        """
        self.signatures = _signatures(described, self.path if self.path.exists() else None)
        if again:
            self.store.forget(self.signatures.values())
        known = {
            signature
            for name, signature in self.signatures.items()
            if any((point.outputs, point.inputs) == self.full[name] for point in self.store.points(signature))
        }
        self._keep(whole, known)
        return self.signatures

    def cuts(self, cutter: Cutter, settings: Settings, progress: Progress) -> list[Observed]:
        """Time random cuts of the network; the points of each are kept at once."""
        plans = cutter.plan(settings.cuts, settings.seed, alike=settings.alike)
        observed, start = [], time.perf_counter()
        for number, kept in enumerate(plans, 1):
            remaining = (time.perf_counter() - start) / max(number - 1, 1) * (len(plans) - number + 1)
            eta = f", about {remaining:.0f} s to go" if number > 1 else ""
            progress(f"timing cut {number} of {len(plans)}{eta}")
            one = observe(cutter.cut(kept), self.inputs, self.full, self.target, self.path)
            self._keep(one)
            observed.append(one)
        return observed

    def _keep(self, observed: Observed, known: Collection[str] = ()) -> None:
        """Keep the points of a network whose layers are not `known`; none of one that was timed while the machine was
        busy, or later tables would be made of them.
        """
        if observed.variation <= BUSY:
            network = total_weights(observed.widths, self.full, self.weights)
            points = points_of(observed, self.signatures, network)
            self.store.add((signature, point) for signature, point in points if signature not in known)


def layer_signatures(
    model: nn.Module, inputs: tuple[Tensor, ...], full: Widths, path: Path
) -> dict[str, str]:
    """What decides each layer's latency, of a network and its model file: layers of one signature share their points."""
    return _signatures(_described(model, inputs, full), path)


def layer_weights(model: nn.Module, full: Widths) -> dict[str, float]:
    """How many weights each layer has; 0 for one whose module has none of its own."""
    modules = dict(model.named_modules())
    found = {name: getattr(modules.get(name), "weight", None) for name in full}
    return {name: float(one.numel()) if isinstance(one, Tensor) else 0.0 for name, one in found.items()}


def points_of(observed: Observed, signatures: Mapping[str, str], network: float) -> list[tuple[str, Point]]:
    """The layers that are there, with their widths, in a network of so many weights."""
    return [
        (signatures[layer], Point(outputs, inputs, observed.layers[layer], network))
        for layer, (outputs, inputs) in observed.widths.items()
        if outputs and inputs != 0 and observed.layers[layer] > 0
    ]


def _described(model: nn.Module, inputs: tuple[Tensor, ...], full: Widths) -> dict[str, list[object]]:
    """Each layer's module, the shape of its input and its widths."""
    shapes: dict[str, list[int]] = {}
    modules = dict(model.named_modules())

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: object) -> None:
            shapes.setdefault(name, list(args[0].shape))

        return hook

    handles = [modules[name].register_forward_hook(note(name)) for name in full if name in modules]
    try:
        with borrowed(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: [repr(modules.get(name)), shapes.get(name), width] for name, width in full.items()}


def _signatures(described: Mapping[str, list[object]], path: Path | None) -> dict[str, str]:
    """What decides a layer's latency: its module, its input's shape, its full widths, and what runs after it."""
    followers = _followers(path, list(described)) if path is not None else {}
    return {name: _digest([*facts, followers.get(name, ())]) for name, facts in described.items()}


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:24]


def _followers(path: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The operators of a model file between each layer and the next."""
    found: dict[str, list[str]] = {}
    current = ""
    for node in onnx.load(str(path), load_external_data=False).graph.node:
        current = layer_of(node.name, names) or current
        found.setdefault(current, []).append(node.op_type)
    return {name: tuple(operators) for name, operators in found.items()}
