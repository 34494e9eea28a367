"""torch.compile of the encoder and the heads (`train.compile`), in the forward passes of training alone.

The modules stay as they are: within a forward pass their `forward` is the compiled one. So checkpoints, surgery, validation and
export see a plain network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from compactmtl.config.train import TrainConfig
from compactmtl.data.base import Batch
from compactmtl.errors import ConfigError, MissingDependencyError, first_line, machine_fault
from compactmtl.models import MultiTaskModel, OwnModel
from compactmtl.models.multitask import TaskEncoders
from compactmtl.surgery.slice_plan import Kept
from compactmtl.train.part import Part, Setup

KEY = "train.compile"
# Of one function: heads of a class share it, and each has a version for each size of a batch, with gradients and without.
VERSIONS = 256


class Compiled(Part):
    """The compiled forward passes of a model's encoder and heads."""

    def __init__(self, config: TrainConfig, model: MultiTaskModel) -> None:
        self._backend = "inductor" if config.compile is True else str(config.compile)
        self._bind(model)

    def _bind(self, model: MultiTaskModel) -> None:
        self._forwards: list[tuple[nn.Module, Callable[..., Any]]] = [
            # static sizes: an epoch has batches of two sizes at most
            (module, torch.compile(module.forward, backend=self._backend, dynamic=False))
            for module in units(model)
        ]

    def forward_context(self, batch: Batch) -> AbstractContextManager[None]:
        return self._compiled()

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        for module, forward in self._forwards:
            module.forward = forward
        try:
            with _settings(), _explained():
                yield
        finally:
            for module, _ in self._forwards:
                del module.forward

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        torch.compiler.reset()  # what was compiled is of the larger network
        self._bind(model)


def units(model: MultiTaskModel) -> list[nn.Module]:
    """What is compiled of a model, each on its own: the encoder, or that of each task, and the heads."""
    if isinstance(model, OwnModel):
        if model.encoder_path is None:
            return [model.network]
        return [model.encoder, *(model.heads.values() if model.head_paths else ())]
    encoder = model.encoder
    encoders = list(encoder.values()) if isinstance(encoder, TaskEncoders) else [encoder]
    return [*encoders, *model.heads.values()]


@contextmanager
def _settings() -> Iterator[None]:
    """Settings of torch.compile in a forward pass: many versions of a function, none left uncompiled in silence, and graphs of
    which several gradients can be taken."""
    import torch._dynamo as dynamo_package  # seconds, which who compiles nothing need not wait
    import torch._functorch.config as functorch_config

    dynamo: Any = dynamo_package.config
    functorch: Any = functorch_config
    versions = dynamo.patch(recompile_limit=VERSIONS, fail_on_recompile_limit_hit=True)
    with versions, functorch.patch(donated_buffer=False), warnings.catch_warnings():
        # torch's own tracing looks at `.grad` of the features that a head is given
        warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
        yield


@contextmanager
def _explained() -> Iterator[None]:
    """Raise ConfigError where the network cannot be compiled."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        if machine_fault(error) is not None:
            raise
        raise ConfigError(
            f"{KEY}: torch.compile cannot compile the network: {first_line(error)}",
            f"{KEY}=eager shows whether it can be traced at all; {KEY}=false trains without",
        ) from error


def check_compiler(device: torch.device) -> None:
    """Raise MissingDependencyError where torch.compile cannot generate code on this machine: a small function is compiled."""
    from torch._dynamo.exc import TorchDynamoException

    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()  # a function that was compiled before would need none
        except Exception as error:
            raise _no_compiler(error) from error
    try:
        with _settings():
            torch.compile(_small, dynamic=False)(torch.ones(8, device=device))
    except TorchDynamoException as error:
        raise _no_compiler(error) from error


def _small(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def _no_compiler(error: Exception) -> MissingDependencyError:
    return MissingDependencyError(
        f"{KEY}: torch.compile cannot generate code on this machine: {first_line(error)}",
        "install a C++ compiler, such as g++ (CXX names another), with the headers of Python, and for a GPU Triton; or set "
        f"{KEY}=false",
    )


def build_compiled(setup: Setup) -> Compiled | None:
    """The recipe's `train.compile`, or None. Raises MissingDependencyError where no code can be generated here."""
    config = setup.recipe.train
    if config.compile is False:
        return None
    if config.compile is True:
        check_compiler(setup.device)
    return Compiled(config, setup.model)
