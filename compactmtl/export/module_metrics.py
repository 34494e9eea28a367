"""A user's own evaluation: one callable that scores the torch model, each candidate file and the baseline alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from compactmtl.backends import Runner
from compactmtl.backends.batching import fixed_batch, run_batched
from compactmtl.backends.torch.runner import device_of, named_outputs
from compactmtl.errors import ArtifactError, CompactError, ConfigError, DataError
from compactmtl.export.module_inputs import arguments_of, feed_of
from compactmtl.graph.float32 import float32_products
from compactmtl.graph.inputs import Arguments, batch_size, copied, map_tensors
from compactmtl.tasks.base import MetricInfo
from compactmtl.verify.accuracy import evaluating
from compactmtl.verify.result import TaskMetrics

GENERAL = "model"  # of metrics that speak of no output
Evaluate = Callable[["Predict"], Mapping[str, Any]]
# Words of a metric's name that are errors: without a direction such a metric would be held the wrong way round.
_ERRORS = {
    "loss",
    "error",
    "err",
    "rmse",
    "mse",
    "mae",
    "rel",
    "absrel",
    "nll",
    "perplexity",
    "distance",
    "dist",
    "epe",
} | {*("fid", "lpips", "wer", "cer", "brier", "ece", "latency", "ms", "seconds")}


class Predict:
    """A stand-in for the module: takes what it takes and gives what it gives, tensors on the CPU, without gradients."""

    training = False

    def __init__(self, model: nn.Module, run: Callable[[Arguments], Mapping[str, Tensor]], like: Any) -> None:
        self._model, self._run = model, run
        leaves, self._spec = tree_flatten(like)
        self._whole = all(isinstance(leaf, Tensor) for leaf in leaves)
        self.samples = 0  # that were asked for

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = arguments_of(self._model, args, kwargs)
        self.samples += batch_size(arguments)
        outputs = dict(self._run(arguments))
        return tree_unflatten(list(outputs.values()), self._spec) if self._whole else outputs

    def eval(self) -> Self:
        """It is in eval mode."""
        return self


@dataclass(frozen=True)
class Own:
    """A user's metrics that speak of one output, or of the model as a whole."""

    metric_info: Mapping[str, MetricInfo]

    @property
    def primary(self) -> str:
        """The first one."""
        return next(iter(self.metric_info))


@dataclass
class OwnEvaluation:
    """Scores models by the user's `evaluate`; the first call, of the torch model, says what the metrics are.

    `evaluate` gives {metric: value} or {metric: (value, higher_is_better)}. A metric named `output.name` belongs to
    that output: the search for layers that int8 leaves in float looks at it first where it fails.
    """

    evaluate: Evaluate
    model: nn.Module
    outputs: Sequence[str]
    like: Any  # what the module returns, for its structure
    names: Sequence[str] | None  # that were given to the outputs
    samples: int = 0
    metrics: dict[str, Own] = field(default_factory=dict)

    def of_torch(self, module: nn.Module, who: str) -> TaskMetrics:
        """The metrics of a torch module. Raises DataError where one is no number."""
        device = device_of(module)

        def run(arguments: Arguments) -> dict[str, Tensor]:
            placed = map_tensors(lambda one: one.to(device), copied(arguments))
            return {name: one.cpu() for name, one in named_outputs(module(*placed), self.names).items()}

        with evaluating(module), torch.no_grad(), float32_products():
            found = self._scored(Predict(self.model, run, self.like), who)
        for task, values in found.items():
            for metric, value in values.items():
                if not math.isfinite(value):
                    raise DataError(
                        f"evaluate gives {value} for '{_full(task, metric)}' of {who}: nothing can be held against it",
                        "mend evaluate, or give it data on which the metric is defined",
                    )
        return found

    def of_file(
        self,
        runner: Runner,
        feed: Callable[[Arguments], Arguments],
        restore: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        input_names: Sequence[str],
        batch: int | None = None,
    ) -> TaskMetrics:
        """The metrics of an opened file, fed with at most `batch` samples at a time where it is given."""

        def run(arguments: Arguments) -> dict[str, Tensor]:
            arrays = feed_of(feed(arguments), input_names)
            count = batch_size(arguments)
            _check_batch(runner, count)
            step = batch or count
            parts = [
                run_batched(runner, {name: one[start : start + step] for name, one in arrays.items()})
                for start in range(0, count, step)
            ]
            outputs = {name: torch.cat([torch.from_numpy(one[name]) for one in parts]) for name in parts[0]}
            return dict(restore(outputs))

        return self._scored(Predict(self.model, run, self.like), "the exported file")

    def _scored(self, predict: Predict, who: str) -> TaskMetrics:
        try:
            given = self.evaluate(predict)
        except CompactError:
            raise
        except Exception as error:  # the user's own code
            raise ConfigError(
                f"evaluate fails on {who}: {type(error).__name__}: {error}",
                "evaluate(predict) calls predict as the model, and returns {metric: value}",
            ) from error
        if not predict.samples:
            raise ConfigError(
                f"evaluate did not call predict on {who}: it measured something else",
                "call predict(inputs) in it where you would call the model",
            )
        values, directions = _read(given, who)
        if not self.metrics:
            self.samples = predict.samples
            self.metrics = {
                task: Own({metric: MetricInfo(higher) for metric, higher in one.items()})
                for task, one in _grouped(directions, self.outputs).items()
            }
        self._check_same(directions, who)
        return _grouped(values, self.outputs)

    def _check_same(self, directions: Mapping[str, bool], who: str) -> None:
        known = {
            _full(task, metric): info.higher_is_better
            for task, one in self.metrics.items()
            for metric, info in one.metric_info.items()
        }
        if set(known) != set(directions):
            raise ConfigError(
                f"evaluate gives {', '.join(directions)} for {who}, and {', '.join(known)} for the torch model",
                "return the same metrics for each model that it is given",
            )
        for metric, higher in directions.items():
            if known[metric] != higher:
                raise ConfigError(
                    f"evaluate says that more of '{metric}' is {'better' if higher else 'worse'} for {who}, and the opposite"
                    " for the torch model",
                    "say the same for each model",
                )


def _read(given: Any, who: str) -> tuple[dict[str, float], dict[str, bool]]:
    """Values and directions of what evaluate has returned. Raises ConfigError where it is of no such form."""
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"evaluate gives {'nothing' if not given else f'a {type(given).__name__}'} for {who}",
            "return a dict: {'miou': 0.71} or, where less is better, {'rmse': (0.43, False)}",
        )
    values: dict[str, float] = {}
    directions: dict[str, bool] = {}
    for name, one in given.items():
        pair = isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], bool)
        value, higher = one if pair else (one, True)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(name, str) or not name or isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigError(
                f"evaluate gives {name!r}: {one!r} for {who}",
                "give each metric as a number, or as (number, whether more is better)",
            )
        if not pair and _ERRORS & set(re.split(r"[^a-z]+", name.lower())):
            raise ConfigError(
                f"evaluate gives '{name}' as a plain number, of which more would be better",
                f"say which way it goes: {{{name!r}: (value, False)}} where less is better, (value, True) where more is",
            )
        values[name], directions[name] = float(value), higher
    return values, directions


def _grouped(values: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{output.metric: value} as {output: {metric: value}}; metrics of no output are the model's."""
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        output = next((one for one in outputs if name.startswith(f"{one}.") and len(name) > len(one) + 1), "")
        task, metric = (output, name[len(output) + 1 :]) if output else (GENERAL, name)
        grouped.setdefault(task, {})[metric] = value
    return grouped


def _full(task: str, metric: str) -> str:
    return metric if task == GENERAL else f"{task}.{metric}"


def _check_batch(runner: Runner, count: int) -> None:
    """Raise ArtifactError where a file of fixed batch can't be fed `count` samples: an output has no samples to cut off."""
    batch = fixed_batch(runner)
    if batch is None or batch == count:
        return
    for one in runner.outputs:
        if one.shape is not None and (not one.shape or one.shape[0] != batch):
            raise ArtifactError(
                f"predict was given {count} samples, and the file takes {batch} at a time: output '{one.name}' of shape"
                f" {one.shape} can't be put together from several runs",
                f"give predict {batch} at a time, or export with onnx.dynamic_batch",
            )
