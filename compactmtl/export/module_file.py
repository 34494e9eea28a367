"""The file of a user's module: how it is written, what is baked into it, and what its target asks of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from compactmtl.artifacts.told import Progress
from compactmtl.backends.torch.runner import named_outputs
from compactmtl.backends.versions import package_versions
from compactmtl.config.precision import Precision
from compactmtl.config.target import Target
from compactmtl.data.base import Preprocessing
from compactmtl.errors import ConfigError
from compactmtl.export.module_inputs import checked_outputs
from compactmtl.export.onnx_file import OnnxModel, write_file
from compactmtl.export.precision import PrecisionRecord
from compactmtl.export.precision.apply import Check
from compactmtl.export.precision.ranges import Feed
from compactmtl.export.processing import Interface
from compactmtl.export.writer import write_module
from compactmtl.graph.inputs import Arguments, tensors_in
from compactmtl.surgery.plan import Plan
from compactmtl.tasks.placement import Resize


@dataclass(frozen=True)
class ModuleWriter:
    """Writes modules of the same inputs and outputs as files for one target."""

    target: Target
    inputs: Arguments
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    interface: Interface | None
    feeds: Sequence[Feed]

    def wrapped(self, model: nn.Module) -> nn.Module:
        """A module as its file computes it: itself where nothing is baked in."""
        return model if self.interface is None else self.interface.wrap(Named(model, self.output_names))

    def write(
        self,
        model: nn.Module,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        check: Check | None = None,
        progress: Progress = lambda line: None,
    ) -> PrecisionRecord | None:
        """Write a module or ONNX file to `path`, as `Writer.write`."""
        if isinstance(model, OnnxModel):
            return write_file(
                model, path, self.target, self.feeds, metadata=metadata, check=check, progress=progress
            )
        return write_module(
            self.wrapped(model),
            self.inputs,
            path,
            self.target,
            lambda: self.feeds,
            input_names=self.input_names,
            output_names=self.output_names,
            size_dimensions=(1, 2) if self.target.onnx.preprocess else (2, 3),
            metadata=metadata,
            check=check,
            progress=progress,
        )

    def at(self, precision: Precision) -> ModuleWriter:
        """The same for the target in another precision."""
        return replace(self, target=self.target.model_copy(update={"precision": precision}))


class Named(nn.Module):
    """A module whose outputs are a dict by name."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = tuple(names)
        self.train(model.training)

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return named_outputs(self.model(*arguments), self._names)


def check_baseline(
    baseline: nn.Module, arguments: Arguments, names: Sequence[str] | None, found: Mapping[str, Tensor]
) -> None:
    """Raise ConfigError where the baseline gives other outputs than the model."""
    _, theirs = checked_outputs(baseline, arguments, names, "the baseline")
    shapes = [{name: tuple(one.shape) for name, one in outputs.items()} for outputs in (theirs, found)]
    if list(shapes[0].items()) != list(shapes[1].items()):
        raise ConfigError(
            f"the baseline gives {shapes[0]}, the model {shapes[1]}",
            "give a baseline of the same outputs, such as the model before surgery",
        )


def preprocessing_of(
    given: Preprocessing | Mapping[str, Any] | None, arguments: Arguments
) -> Preprocessing | None:
    """How pictures become the input. Raises ConfigError where the model takes no pictures of that size."""
    if given is None:
        return None
    tensors = tensors_in(arguments)
    if len(tensors) != 1 or tensors[0].dim() != 4:
        raise ConfigError(
            f"images= says how pictures become the input, and the model takes {[tuple(one.shape) for one in tensors]}",
            "leave images out: only one input of pictures (B, C, H, W) can be made from a picture file",
        )
    channels, size = int(tensors[0].shape[1]), (int(tensors[0].shape[2]), int(tensors[0].shape[3]))
    if not isinstance(given, Preprocessing):
        keys = [one.name for one in fields(Preprocessing)]
        if unknown := set(given) - set(keys):
            raise ConfigError(f"images= has no {', '.join(sorted(unknown))}", f"give {', '.join(keys)}")
        if given.get("resize", "stretch") not in get_args(Resize):
            raise ConfigError(
                f"images= has resize {given['resize']!r}", f"give one of {', '.join(get_args(Resize))}"
            )
        values: dict[str, Any] = {"size": size}
        values |= {key: tuple(one) if isinstance(one, list) else one for key, one in given.items()}
        try:
            given = Preprocessing(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"images=: {error}", "give mean and std of values of 0 to 1, one number a channel"
            ) from error
    for key, numbers in (("mean", given.mean), ("std", given.std)):
        if len(numbers) != channels:
            raise ConfigError(
                f"images= has a {key} of {len(numbers)} values, the model takes pictures of {channels} channels",
                "give one value a channel",
            )
    if tuple(given.size) != size:
        raise ConfigError(
            f"images= has size {tuple(given.size)}, the example's pictures have {size}",
            "give both in the size that the model is deployed at",
        )
    return given


def interface_of(target: Target, tasks: Mapping[str, Any], images: Preprocessing | None) -> Interface | None:
    """What is baked into the file; None where nothing is. Raises ConfigError where the user has not said enough for it."""
    onnx = target.onnx
    if onnx.preprocess and images is None:
        raise ConfigError(
            "onnx.preprocess puts the normalization of pictures into the file, and nobody said what it is",
            "give images={'mean': …, 'std': …}",
        )
    if unknown := sorted(set(onnx.postprocess) - set(tasks)):
        raise ConfigError(
            f"onnx.postprocess names {', '.join(unknown)}, of which no kind is known",
            f"give outputs={{{unknown[0]!r}: {{'kind': …}}}}",
        )
    if not onnx.preprocess and not onnx.postprocess:
        return None
    return Interface.of(onnx, tasks, images or Preprocessing(size=(1, 1)))


def provenance_of(name: str, model: nn.Module, plan: Plan | None) -> dict[str, str]:
    """Strings kept in the ONNX file: which model, weights and plan it came from, with which versions."""
    return {
        "compactmtl.model": name,
        "compactmtl.weights_sha256": model.sha256 if isinstance(model, OnnxModel) else _weights_hash(model),
        **({} if plan is None else {"compactmtl.plan_sha256": _plan_hash(plan)}),
        **{f"version.{package}": version for package, version in package_versions().items()},
    }


def _weights_hash(model: nn.Module) -> str:
    """Of every name, type, shape and value of the state dict."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plan_hash(plan: Plan) -> str:
    return hashlib.sha256(plan.to_json().encode()).hexdigest()
