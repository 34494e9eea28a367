"""Which layers an int8 model needs in float: the most sensitive ones first, until the accuracy gate holds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compactmtl.backends import open_graph, reference_target
from compactmtl.config.precision import Int8Config
from compactmtl.export.precision.int8 import quantize
from compactmtl.export.precision.ranges import Feed
from compactmtl.export.precision.record import SearchStep
from compactmtl.verify.result import GateResult

Attempt = Callable[[tuple[str, ...]], Sequence[GateResult]]  # layers left in float to the gates that fail
Rank = Callable[[Sequence[GateResult]], Sequence[str]]  # failed gates to the layers, those at fault first


@dataclass(frozen=True)
class FloatLayers:
    """The layers to leave in float, whether the gates hold with them, and every evaluation on the way."""

    names: tuple[str, ...]
    held: bool
    steps: tuple[SearchStep, ...]


def find_float_layers(rank: Rank, attempt: Attempt, *, evaluations: int, most: int) -> FloatLayers:
    """Leave 0, 1, 2, 4, ... of the most sensitive layers in float until `attempt` reports no failed gate.

    The last step is then halved to find a smaller number, as evaluations allow. `rank` gives the layers, the most
    sensitive first, for the gates that the fully quantized model fails; it isn't asked where none does. At most `evaluations` attempts are made
    and `most` layers left; where nothing holds, the attempt that comes nearest to its bounds is the answer.
    """
    steps: list[SearchStep] = []
    excess: list[float] = []

    def failures(in_float: tuple[str, ...]) -> Sequence[GateResult]:
        failed = attempt(in_float)
        steps.append(SearchStep(left=in_float, failed=tuple(gate.message for gate in failed)))
        excess.append(
            max((gate.value / gate.bound if gate.bound else np.inf for gate in failed), default=0.0)
        )
        return failed

    failed = failures(())
    if not failed:
        return FloatLayers((), True, tuple(steps))
    order = tuple(rank(failed))
    most = min(most, len(order))
    failing, holding, count = 0, None, 1
    while holding is None and failing < most and len(steps) < evaluations:
        count = min(count, most)
        if failures(order[:count]):
            failing, count = count, 2 * count
        else:
            holding = count
    while holding is not None and holding - failing > 1 and len(steps) < evaluations:
        middle = (failing + holding) // 2
        if failures(order[:middle]):
            failing = middle
        else:
            holding = middle
    if holding is not None:
        return FloatLayers(order[:holding], True, tuple(steps))
    return FloatLayers(steps[int(np.argmin(excess))].left, False, tuple(steps))


def layer_errors(
    source: Path, model: onnx.ModelProto, config: Int8Config, ranges: Any, feed: Feed, layers: Sequence[str]
) -> dict[str, dict[str, float]]:
    """How much each layer alone disturbs each output: {layer: {output: error}}.

    The error is the root mean square difference over the output's standard deviation, with that layer quantized
    and all others in float, on one batch of calibration images.
    """
    reference = _run(source, feed)
    errors: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
        path = Path(folder) / "one.onnx"
        for layer in layers:
            quantize(model, path, config, ranges, only=[layer])
            outputs = _run(path, feed)
            errors[layer] = {name: _error(array, outputs[name]) for name, array in reference.items()}
    return errors


def rank_layers(errors: Mapping[str, Mapping[str, float]], failed: Sequence[GateResult]) -> list[str]:
    """Layers by their error on the outputs whose gates fail, the largest first; on all where none is named."""
    subjects = {gate.subject.partition(".")[0] for gate in failed}

    def key(layer: str) -> tuple[float, str]:
        named = [error for output, error in errors[layer].items() if output in subjects]
        return -max(named or errors[layer].values()), layer

    return sorted(errors, key=key)


def _run(path: Path, feed: Feed) -> dict[str, NDArray[Any]]:
    with open_graph(path, reference_target()) as runner:  # a layer's error is its own, not this processor's
        return runner.run(feed)


def _error(reference: NDArray[Any], output: NDArray[Any]) -> float:
    reference, output = reference.astype(np.float64), output.astype(np.float64)
    spread = float(reference.std()) or 1.0
    error = float(np.sqrt(np.mean((reference - output) ** 2)) / spread)
    return error if math.isfinite(error) else math.inf  # a layer that gives NaN is the first to stay in float
