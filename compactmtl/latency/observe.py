"""One network timed on a target: what each of its layers takes, and all of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.backends import Runner, get_backend
from compactmtl.backends.base import Arrays, LayerTime
from compactmtl.config.target import Target
from compactmtl.export.onnx import export_onnx
from compactmtl.export.precision.apply import apply_precision
from compactmtl.sparsity.latency import Widths
from compactmtl.verify.latency import LOW, is_disturbed, measure_latency, undisturbed
from compactmtl.verify.steps import layer_of, owners_of

SECONDS = 0.6  # of timing a network, about
ROUNDS = (12, 100)  # of timing a network: at least, at most
WARMUP = 3
IMAGE = "image"


@dataclass(frozen=True)
class Observed:
    """Milliseconds of one network, see `attribute`."""

    widths: dict[str, tuple[int, int | None]]
    layers: dict[str, float]
    before: (
        float  # steps before the first layer, such as the change of an input's layout, and what is in no step
    )
    wall: float  # the whole network on idle cores, without a profiler; the sum of both
    variation: float  # of the whole network's runs: the distance of the quartiles over the median


def observe(
    model: nn.Module, inputs: tuple[Tensor, ...], full: Widths, target: Target, path: Path
) -> Observed:
    """Open a network on the target, see `opened`, and time it.

    `full` names the layers; where it is empty the network is timed as a whole alone. Raises as `opened`.
    """
    runner = opened(model, inputs, target, path)
    with runner:
        arrays = {name: value.numpy() for name, value in zip(runner.input_names, inputs, strict=True)}
        repeats = int(np.clip(SECONDS / once_of(runner, arrays) / 2, *ROUNDS))
        stats = measure_latency(
            {"it": runner}, dict(zip(runner.input_names, inputs, strict=True)), warmup=WARMUP, repeats=repeats
        ).stats["it"]
        quantile = LOW if is_disturbed(stats) else 0.5
        times = runner.layer_times(arrays, repeats, quantile) if full else ()
    ((wall, spread),) = undisturbed(stats)
    owners = file_owners(path, list(full)) if times and path.exists() else {}
    layers, before = attribute(times, list(full), wall, owners)
    return Observed(widths_of(model, full), layers, before, wall, spread)


def once_of(runner: Runner, arrays: Arrays) -> float:
    """Seconds of a run, about: the shortest of a few, so that a busy machine is measured no less often than an idle one."""
    seconds = []
    for _ in range(WARMUP + 1):
        start = time.perf_counter()
        runner.run(arrays)
        seconds.append(time.perf_counter() - start)
    return max(min(seconds), 1e-6)


def opened(model: nn.Module, inputs: tuple[Tensor, ...], target: Target, path: Path) -> Runner:
    """A network as a target runs it: exported to `path` in its precision, calibrated on noise, or live on the backend torch.

    Raises ExportError, ArtifactError or MissingDependencyError where it does not run there.
    """
    names = input_names(inputs)
    backend = get_backend(target.backend)
    if not backend.opens_files:
        return backend.open_module(model, names, target)
    export_onnx(model, inputs, path, input_names=names, opset=target.onnx.opset)
    apply_precision(path, target, noise_feeds(names, inputs))
    return backend.open(path, target)


def input_names(inputs: Sequence[Tensor]) -> list[str]:
    """What the inputs of a network that is timed are called in its file."""
    return [IMAGE] if len(inputs) == 1 else [f"input_{index}" for index in range(len(inputs))]


def noise_feeds(names: Sequence[str], inputs: tuple[Tensor, ...]) -> list[dict[str, NDArray[Any]]]:
    """Two batches of noise to calibrate on: only shapes are timed."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: torch.randn(value.shape, generator=generator).numpy()
            if value.is_floating_point()
            else value.numpy()
            for name, value in zip(names, inputs, strict=True)
        }
        for _ in range(2)
    ]


def file_owners(path: Path, names: Sequence[str]) -> dict[str, str]:
    """For the names of nodes and tensors of a model file that no layer's name begins: the layer of `names` before them.

    A runtime names a fused step after the last of its nodes, or after what that writes, such as an output of the network.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    owners = {name: layer_of(owner, names) for name, owner in owners_of(graph)[0].items()}
    return {name: layer for name, layer in owners.items() if layer and not layer_of(name, names)}


def attribute(
    times: Sequence[LayerTime], names: Sequence[str], wall: float, owners: Mapping[str, str]
) -> tuple[dict[str, float], float]:
    """Milliseconds of each layer, and of what is no layer's, of a network that takes `wall` without a profiler.

    A step belongs to the layer with the longest name that its own name begins with, or else to that of the node that it is
    named after by `owners`, see `file_owners`, or else to the layer of the step before it: changes of layout, Q/DQ pairs.
    Where the steps add up to more than `wall`, what the profiler added is taken off each; where to less, the rest is no
    layer's.
    """
    overhead = max(sum(step.milliseconds for step in times) - wall, 0.0) / max(len(times), 1)
    own = [max(step.milliseconds - overhead, 0.0) for step in times]
    if sum(own) > wall:  # short steps were cut off at 0
        own = [ms * wall / sum(own) for ms in own]
    layers = dict.fromkeys(names, 0.0)
    current = ""
    for step, ms in zip(times, own, strict=True):
        current = layer_of(step.name, names) or owners.get(layer_of(step.name, owners)) or current
        if current:
            layers[current] += ms
    return layers, max(wall - sum(layers.values()), 0.0)  # rounding may leave less than nothing


def widths_of(
    model: nn.Module, full: Mapping[str, tuple[int, int | None]]
) -> dict[str, tuple[int, int | None]]:
    """Outputs and inputs of the layers named in `full`; (0, 0) for a layer that surgery took away."""
    modules = dict(model.named_modules())
    found: dict[str, tuple[int, int | None]] = {}
    for name, (_, inputs) in full.items():
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            found[name] = (0, None if inputs is None else 0)
            continue
        module = modules[name]
        if isinstance(module, nn.Linear):
            outputs, read = module.out_features, module.in_features
        else:
            outputs, read = int(module.out_channels), int(module.in_channels)
        found[name] = (outputs, None if inputs is None else read)
    return found
