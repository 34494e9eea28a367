"""What a task's raw output means, in numpy alone: values, probabilities, pictures and words.

A deployed program reads a model with this; it loads no torch. `Task.decode` gives the same in torch, for training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.artifacts.layout import BUNDLE_FILE
from compactmtl.errors import ArtifactError
from compactmtl.tasks import pictures
from compactmtl.tasks.base import TargetKind, TargetSpec
from compactmtl.tasks.instance_decoding_numpy import (
    EXTRA_CHANNELS,
    DecodingOptions,
    decode_instances_numpy,
)

Array = NDArray[Any]
_TINY = 1e-12  # the length below which a normal is not made longer, as torch's normalize has it

# For each kind of task: the kind of target, and whether the output is a map.
_KINDS: Mapping[str, tuple[TargetKind, bool]] = {
    "segmentation": ("mask", True),
    "depth": ("depth", True),
    "disparity": ("disparity", True),
    "normals": ("normals", True),
    "boundaries": ("mask", True),
    "classification": ("class", False),
    "multilabel": ("multilabel", False),
    "regression": ("scalar", False),
    "binned_regression": ("scalar", False),
    "instances": ("instances", True),
}


@dataclass(frozen=True)
class Reading:
    """How one output is read. Made by `reading`, which checks that its parts fit."""

    name: str
    kind: str
    spec: TargetSpec
    dense: bool
    channels: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def decode(self, output: Array) -> Array:
        """The raw output (B, channels, ...) as predictions (B, ...) in the target's own format and unit.

        Of boundaries: probabilities float32 (B, 1, H, W). Raises ArtifactError for another number of channels.
        """
        if output.ndim < 2 or output.shape[1] != self.channels:
            raise ArtifactError(
                f"output {self.name!r} has shape {output.shape}, expected (batch, {self.channels}, …)",
                f"export the run again: model and {BUNDLE_FILE} don't belong together",
            )
        return _DECODE[self.kind](self, output)

    def probabilities(self, output: Array) -> dict[str, float]:
        """Of one image's output (channels,) by class name; empty where the kind has none for an image."""
        if self.kind not in ("classification", "multilabel"):
            return {}
        logits = output.astype(np.float32)
        shares = softmax(logits) if self.kind == "classification" else sigmoid(logits)
        return dict(zip(self.spec.classes, shares.tolist(), strict=True))

    def picture(self, value: Array) -> pictures.Picture:
        """One decoded prediction (no batch dimension) as an (H, W, 3) picture."""
        classes = len(self.spec.classes)
        if self.kind == "segmentation":
            return pictures.mask_picture(value, classes)
        if self.kind == "depth":
            return pictures.depth_picture(value)
        if self.kind == "disparity":
            return pictures.disparity_picture(value)
        if self.kind == "normals":
            return pictures.normals_picture(value)
        if self.kind == "boundaries":
            return pictures.probability_picture(value[0])
        if self.kind == "instances":
            return pictures.instances_picture(value, classes)
        return pictures.text_picture(self.caption(value))

    def caption(self, value: Array) -> str:
        """One decoded prediction in words, such as "31.2 years" or "female"; empty for maps but instances."""
        if self.kind == "classification":
            return pictures.class_text(value, self.spec.classes)
        if self.kind == "multilabel":
            return pictures.labels_text(value, self.spec.classes)
        if self.kind in ("regression", "binned_regression"):
            return pictures.value_text(float(value), self.spec.unit)
        return pictures.instances_text(value, self.spec.classes) if self.kind == "instances" else ""


def reading(name: str, kind: str, spec: TargetSpec, options: Mapping[str, Any], channels: int) -> Reading:
    """How the output of a task of this kind, with these options of the recipe, is read.

    Raises ArtifactError where kind, target, options and the number of channels do not belong together.
    """
    if kind not in _KINDS:
        raise ArtifactError(f"task {name!r} is of kind {kind!r}; the kinds are {', '.join(_KINDS)}", _MEND)
    target, dense = _KINDS[kind]
    if spec.kind != target:
        raise ArtifactError(
            f"task {name!r} of kind {kind} needs a target of kind {target!r}, found {spec.kind!r}", _MEND
        )
    found = Reading(name, kind, spec, dense, channels, dict(options))
    if kind == "binned_regression" and not {"low", "high"} <= set(options):
        raise ArtifactError(f"task {name!r} of kind {kind} lacks the options low and high", _MEND)
    expected = _channels(found)
    if expected != channels:
        raise ArtifactError(
            f"task {name!r} of kind {kind} has {channels} channels, expected {expected}", _MEND
        )
    return found


_MEND = f"{BUNDLE_FILE} is damaged: export the run again"
DEFAULT_BINS = 32  # of a binned regression


def _channels(found: Reading) -> int:
    """The width of a head of this kind on this target."""
    classes = len(found.spec.classes)
    if found.kind == "binned_regression":
        return int(found.options.get("bins", DEFAULT_BINS))
    widths = {"normals": 3, "instances": classes + 1 + EXTRA_CHANNELS}
    widths |= dict.fromkeys(("segmentation", "classification", "multilabel"), classes)
    return widths.get(found.kind, 1)


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-x)), without an overflow."""
    small = np.exp(-np.abs(values))
    found: Array = np.where(values >= 0, 1, small) / (1 + small)
    return found


def softmax(values: Array, axis: int = -1) -> Array:
    """exp(x) / Σ exp(x) along an axis, without an overflow."""
    powers = np.exp(values - values.max(axis, keepdims=True))
    found: Array = powers / powers.sum(axis, keepdims=True)
    return found


def _index(found: Reading, output: Array) -> Array:
    index: Array = output.argmax(1)
    return index


def _as_it_is(found: Reading, output: Array) -> Array:
    return output


def _unit_vectors(found: Reading, output: Array) -> Array:
    length = np.sqrt(np.square(output).sum(1, keepdims=True))
    unit: Array = output / np.maximum(length, _TINY)
    return unit


def _probability(found: Reading, output: Array) -> Array:
    return sigmoid(output.astype(np.float32))


def _present(found: Reading, output: Array) -> Array:
    return (output > 0).astype(np.float32)


def _value(found: Reading, output: Array) -> Array:
    return output[:, 0]


def _expectation(found: Reading, output: Array) -> Array:
    low, high = float(found.options["low"]), float(found.options["high"])
    centers = np.linspace(low, high, found.channels, dtype=np.float32)
    expected: Array = (softmax(output.astype(np.float32), 1) * centers).sum(1)
    return expected


def _instances(found: Reading, output: Array) -> Array:
    chosen = {key: found.options[key] for key in DecodingOptions.model_fields if key in found.options}
    options = DecodingOptions.model_validate(chosen)
    maps = []
    for one in output:
        numbers, classes, _ = decode_instances_numpy(
            one, threshold=options.threshold, window=options.window, limit=options.limit
        )
        table = np.concatenate([np.zeros(1, np.int64), classes])
        maps.append(np.stack([numbers, table[numbers]]))
    return np.stack(maps)


_DECODE: Mapping[str, Callable[[Reading, Array], Array]] = {
    "segmentation": _index,
    "depth": _as_it_is,
    "disparity": _as_it_is,
    "normals": _unit_vectors,
    "boundaries": _probability,
    "classification": _index,
    "multilabel": _present,
    "regression": _value,
    "binned_regression": _expectation,
    "instances": _instances,
}
