"""What TorchJD's methods remember from step to step, as tensors and numbers that a checkpoint may hold.

TorchJD 0.18 keeps it in attributes of its own, outside of state_dict: the names below are its private ones, and a test
holds each method to going on from its state as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_REMEMBERED: Mapping[str, tuple[str, ...]] = {
    "GradVacWeighting": ("_phi_t",),
    "PCDWeighting": ("_sq_norm_ema", "_n_steps"),
    "ExcessMTLWeighting": ("_weights", "_sq_grad_sum", "_initial_w", "_warmup_w_sum", "_n_steps"),
    "DWA": ("_loss_sum", "_n_batches", "_previous_averages"),
}

# What a method checks its inputs against, made anew of what it remembers.
_KEYS: Mapping[str, Callable[[Any], Any]] = {
    "GradVacWeighting": lambda m: (m._phi_t.shape[0], m._phi_t.dtype),
    "PCDWeighting": lambda m: m._sq_norm_ema.shape[0],
    "ExcessMTLWeighting": lambda m: (*m._sq_grad_sum.shape, m._sq_grad_sum.dtype, m._sq_grad_sum.device),
}


def dump_state(module: nn.Module) -> dict[str, Any]:
    """Everything that `module` and its parts remember, by part and attribute."""
    return {
        f"{name}.{attribute}": _copied(getattr(part, attribute))
        for name, part in _parts(module)
        for attribute in _REMEMBERED[type(part).__name__]
    }


def load_state(module: nn.Module, state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `dump_state`, into a fresh module of the same options, on `device`."""
    for name, part in _parts(module):
        kind = type(part).__name__
        for attribute in _REMEMBERED[kind]:
            setattr(part, attribute, _copied(state[f"{name}.{attribute}"], device))
        if kind in _KEYS and getattr(part, _REMEMBERED[kind][0]) is not None:
            part._state_key = _KEYS[kind](part)


def _parts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in module.named_modules() if type(part).__name__ in _REMEMBERED)


def _copied(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    return [_copied(item, device) for item in value] if isinstance(value, list) else value
