"""Pre- and postprocessing inside the model file, on request, and the way back for whoever scores its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from compactmtl.config.target import OnnxConfig
from compactmtl.data.base import Preprocessing, Rule, Vector
from compactmtl.data.images import denormalize
from compactmtl.data.inputs import Images, image_of, parts
from compactmtl.errors import ConfigError
from compactmtl.tasks.base import Task
from compactmtl.tasks.postprocess import POSTPROCESS

Run = Callable[[Images], Mapping[str, Tensor]]


class Deployed(nn.Module):
    """The model as its file computes it: uint8 (B, H, W, C) or normalized float32 (B, C, H, W) to {task: output}."""

    def __init__(
        self, model: nn.Module, preprocess: Preprocessing | None, postprocess: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.model = model
        self.baked = preprocess is not None
        self.postprocess = dict(postprocess)
        given = preprocess or Preprocessing(size=(1, 1))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (given.mean, given.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, image: Tensor, *others: Tensor) -> dict[str, Tensor]:
        if self.baked:
            # Cast first: TensorRT takes uint8 for an input and a cast, and transposes none.
            image = image.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
        outputs: Mapping[str, Tensor] = self.model(image, *others)
        return {name: self._after(name, output) for name, output in outputs.items()}

    def _after(self, name: str, output: Tensor) -> Tensor:
        after = self.postprocess.get(name)
        return output if after is None else POSTPROCESS[after].apply(output)


class DeployedInputs(nn.Module):
    """A model of several inputs as its file computes it: pictures uint8 (B, H, W, C) and raw vectors (B, n) to {task: output}."""

    def __init__(self, model: nn.Module, rules: Sequence[Rule], postprocess: Mapping[str, str]) -> None:
        super().__init__()
        self.after = Deployed(model, None, postprocess)
        self.steps = nn.ModuleList(
            [_Picture(one) if isinstance(one, Preprocessing) else _Numbers(one) for one in rules]
        )

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        normalized = (step(one) for step, one in zip(self.steps, inputs, strict=True))
        outputs: dict[str, Tensor] = self.after(*normalized)
        return outputs


class _Picture(nn.Module):
    def __init__(self, rule: Preprocessing) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (rule.mean, rule.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, image: Tensor) -> Tensor:
        return image.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift


class _Numbers(nn.Module):
    def __init__(self, rule: Vector) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(rule.mean), persistent=False)
        self.register_buffer("std", torch.tensor(rule.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, vector: Tensor) -> Tensor:
        return (vector - self.mean) / self.std


@dataclass(frozen=True)
class Interface:
    """What a model file takes and gives, for callers that hold normalized images and want raw outputs."""

    preprocess: Preprocessing | tuple[Rule, ...] | None  # of each input, where there are several
    postprocess: Mapping[str, str]
    channels: Mapping[str, int]

    @classmethod
    def of(
        cls,
        config: OnnxConfig,
        tasks: Mapping[str, Task],
        preprocessing: Preprocessing | tuple[Rule, ...],
    ) -> Interface:
        """Of a target for these tasks. Raises ConfigError where onnx.postprocess doesn't fit them."""
        for name, kind in config.postprocess.items():
            if name not in tasks:
                raise ConfigError(
                    f"onnx.postprocess names {name!r}, which is no task; the tasks are {', '.join(tasks)}",
                    "name a task of the recipe",
                )
            if kind not in tasks[name].postprocess:
                raise ConfigError(
                    f"onnx.postprocess.{name}: {kind} can't follow a task of kind {tasks[name].kind}",
                    f"{tasks[name].kind} offers {', '.join(tasks[name].postprocess) or 'nothing'}",
                )
        channels = {name: task.channels for name, task in tasks.items()}
        return cls(preprocessing if config.preprocess else None, config.postprocess, channels)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as its file computes it; itself where nothing is baked in."""
        if self.preprocess is None and not self.postprocess:
            return model
        if isinstance(self.preprocess, tuple):
            return DeployedInputs(model, self.preprocess, self.postprocess)
        return Deployed(model, self.preprocess, self.postprocess)

    @overload
    def feed(self, images: Tensor) -> Tensor: ...

    @overload
    def feed(self, images: Images) -> Images: ...

    def feed(self, images: Images) -> Images:
        """Normalized images (B, C, H, W), or inputs, as the file takes them. Pixels come back exactly: they were uint8."""
        if self.preprocess is None:
            return images
        if isinstance(self.preprocess, tuple):
            return tuple(map(_unmade, parts(images), self.preprocess))
        return _unmade(image_of(images), self.preprocess)

    def restore(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The file's outputs as raw outputs whose decoding is the same: a class map becomes one-hot."""
        return {name: self._restore(name, output) for name, output in outputs.items()}

    def runner(self, run: Run) -> Run:
        """`run` of the file as a function of normalized images that gives raw outputs, for `evaluate`."""
        return lambda images: self.restore(run(self.feed(images)))

    def _restore(self, name: str, output: Tensor) -> Tensor:
        after = self.postprocess.get(name)
        return output if after is None else POSTPROCESS[after].restore(output, self.channels[name])


def _unmade(values: Tensor, rule: Rule) -> Tensor:
    """A normalized input as it was before: pictures uint8 (B, H, W, C)."""
    if isinstance(rule, Vector):
        return values * torch.tensor(rule.std) + torch.tensor(rule.mean)
    return denormalize(values, rule).permute(0, 2, 3, 1).contiguous()
