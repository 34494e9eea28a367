"""A live module behind the runner protocol: the reference for parity and latency."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.backends.base import Arrays, Description, Runner, TensorInfo
from compactmtl.backends.machine import cpu_name
from compactmtl.backends.torch.entry import TorchBackend
from compactmtl.errors import ArtifactError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.float32 import float32_products


def named_outputs(outputs: object, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """A module's outputs by name, in order: a mapping's own keys, else `output` or `output_0`, `output_1`, ...

    `names` renames them in order. Raises ArtifactError where an output is no tensor or the counts differ.
    """
    named: dict[str, object]
    if isinstance(outputs, Mapping):
        named = {str(key): value for key, value in outputs.items()}
    elif isinstance(outputs, Tensor):
        named = {"output": outputs}
    elif isinstance(outputs, list | tuple):
        named = {f"output_{i}": value for i, value in enumerate(outputs)}
    else:
        named = {"output": outputs}
    tensors: dict[str, Tensor] = {}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise ArtifactError(
                f"output '{name}' of the model is a {type(value).__name__}, not a tensor",
                "return a tensor, or a flat dict, list or tuple of tensors",
            )
        tensors[name] = value
    if not tensors:
        raise ArtifactError("the model returns no output", "return at least one tensor")
    if names is None:
        return tensors
    if len(names) != len(tensors):
        raise ArtifactError(
            f"the model returns {len(tensors)} outputs {list(tensors)}, {len(names)} names given {list(names)}",
            "give one name for each output, in the model's order",
        )
    return dict(zip(names, tensors.values(), strict=True))


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor on the host; bfloat16, which numpy lacks, as float32, which holds every value of it."""
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy(force=True)


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters or buffers are; the CPU where it has none."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def device_name(device: torch.device) -> str:
    """The processor's or the GPU's model name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def synchronizer(device: torch.device) -> Callable[[], None] | None:
    """What to call so that all work queued on `device` is done; None where calls already wait."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return None


class TorchRunner(Runner):
    """A module without gradients on its own device, in eval mode for each run; arrays in, arrays out.

    The module is left as it was, but for what a change to eval mode does to its weights.

    `threads` sets torch's CPU threads while it runs and puts the former number back on close.
    """

    def __init__(
        self,
        module: nn.Module,
        input_names: Sequence[str],
        output_names: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.module = module
        self.device = device_of(module)
        self.threads = threads
        self.inputs = tuple(TensorInfo(name) for name in input_names)
        self._renamed = None if output_names is None else tuple(output_names)
        self.outputs = tuple(
            TensorInfo(name) for name in output_names or ()
        )  # known after the first run at last
        self._former_threads = torch.get_num_threads()

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        arguments = [torch.as_tensor(inputs[name], device=self.device) for name in self.input_names]
        # float32 stays float32: cuDNN would convolve in TF32
        exact = nullcontext() if self.device.type == "cpu" else float32_products()
        with borrowed(self.module, weights=False), exact:
            tensors = named_outputs(self.module(*arguments), self._renamed)
            arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
        if not self.outputs:
            self.outputs = tuple(TensorInfo(name) for name in arrays)
        return arrays

    def describe(self) -> Description:
        tensor = next(self.module.parameters(), None)
        return Description(
            backend=TorchBackend.name,
            version=torch.__version__,
            provider=self.device.type,
            device=device_name(self.device),
            precision="fp32" if tensor is None else precision_name(tensor.dtype),
            threads=(self.threads or torch.get_num_threads()) if self.device.type == "cpu" else None,
        )

    def close(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self._former_threads)


def precision_name(dtype: torch.dtype) -> str:
    """The short name of a dtype, such as fp32."""
    short = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
    return short.get(dtype, str(dtype).removeprefix("torch."))
