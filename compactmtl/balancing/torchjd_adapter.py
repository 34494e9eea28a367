"""All that is known here of TorchJD's private attributes: what its methods remember from step to step.

TorchJD 0.18 has no public way to read that state: `state_dict` lacks the counts and what inputs are checked against, and
a fresh module refuses the tensors in it. So the attributes below are read and written, as tensors and numbers that a
checkpoint may hold. Where a version of TorchJD has others, an error says so, and a test fails for each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torchjd import aggregation, scalarization

from compactmtl.errors import MissingDependencyError


@dataclass(frozen=True)
class Memory:
    """The attributes in which a class of TorchJD remembers; `key` makes anew what it checks its inputs against."""

    attributes: tuple[str, ...]
    key: Callable[[Any], Any] | None = None


MEMORY: Mapping[type[nn.Module], Memory] = {
    aggregation.GradVacWeighting: Memory(("_phi_t",), lambda m: (m._phi_t.shape[0], m._phi_t.dtype)),
    aggregation.PCDWeighting: Memory(("_sq_norm_ema", "_n_steps"), lambda m: m._sq_norm_ema.shape[0]),
    aggregation.ExcessMTLWeighting: Memory(
        ("_weights", "_sq_grad_sum", "_initial_w", "_warmup_w_sum", "_n_steps"),
        lambda m: (*m._sq_grad_sum.shape, m._sq_grad_sum.dtype, m._sq_grad_sum.device),
    ),
}
FAMO = Memory(
    ("_w", "_optimizer", "_prev_losses")
)  # one of them an optimizer, which is saved by its own state
_KEY = "_state_key"


def require(module: nn.Module, memory: Memory) -> None:
    """Raise MissingDependencyError where `module` has other attributes than this adapter was written for."""
    expected = (*memory.attributes, *([_KEY] if memory.key is not None else []))
    if lacking := [name for name in expected if not hasattr(module, name)]:
        raise MissingDependencyError(
            f"TorchJD {version('torchjd')} keeps the state of {type(module).__name__} elsewhere: it has no"
            f" {', '.join(lacking)}",
            "pip install 'torchjd==0.18.*', or choose another balancing.name",
        )


def dump_state(module: nn.Module) -> dict[str, Any]:
    """Everything that `module` and its parts remember, by part and attribute."""
    return {
        f"{name}.{attribute}": _copied(getattr(part, attribute))
        for name, part, memory in _parts(module)
        for attribute in memory.attributes
    }


def load_state(module: nn.Module, state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `dump_state`, into a fresh module of the same options, on `device`."""
    for name, part, memory in _parts(module):
        for attribute in memory.attributes:
            setattr(part, attribute, _copied(state[f"{name}.{attribute}"], device))
        if memory.key is not None and getattr(part, memory.attributes[0]) is not None:
            setattr(part, _KEY, memory.key(part))


def famo_logits(famo: scalarization.FAMO) -> Tensor:
    """The logits of FAMO's weights, (T,)."""
    require(famo, FAMO)
    return famo._w


def dump_famo(famo: scalarization.FAMO) -> dict[str, Any]:
    """The logits of the weights, their optimizer's state, and the losses that the next update compares with."""
    logits = famo_logits(famo).detach().clone()
    # a copy: the dict has the optimizer's own tensors
    optimizer = {} if famo._optimizer is None else copy.deepcopy(famo._optimizer.state_dict())
    before = {} if famo._prev_losses is None else {"before": famo._prev_losses.clone()}
    return {"logits": logits, "optimizer": optimizer, **before}


def load_famo(famo: scalarization.FAMO, state: Mapping[str, Any]) -> None:
    """The inverse of `dump_famo`."""
    logits = famo_logits(famo)
    with torch.no_grad():
        logits.copy_(state["logits"])
    famo._prev_losses = state["before"].to(logits.device, copy=True) if "before" in state else None
    if state["optimizer"]:
        famo._optimizer = torch.optim.Adam([famo._w])
        famo._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def _parts(module: nn.Module) -> Iterator[tuple[str, Any, Memory]]:
    for name, part in module.named_modules():
        memory = MEMORY.get(type(part))
        if memory is not None:
            require(part, memory)
            yield name, part, memory


def _copied(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    return [_copied(item, device) for item in value] if isinstance(value, list) else value
