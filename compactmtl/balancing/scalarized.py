"""TorchJD's scalarizers by name: one scalar made of the losses, whose gradient is then followed.

Source of each method: its docstring in `torchjd.scalarization`; docs/balancing.md lists the papers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torchjd import scalarization as jd

from compactmtl.balancing.base import Balancer, NoOptions, check_positive
from compactmtl.balancing.options import NotNegative, PerTask, method_options, vector
from compactmtl.balancing.torchjd_state import dump_state, load_state
from compactmtl.config.schema import Frozen, Positive


class DwaOptions(Frozen):
    """`temperature`: a larger one makes the weights more alike."""

    temperature: Positive = 2.0


class FamoOptions(Frozen):
    """Of the optimizer that learns the weights; `least`: the least loss of each task, in the order of the tasks."""

    lr: Positive = 0.025
    weight_decay: NotNegative = 1e-3
    least: tuple[float, ...] | None = None


class ReferenceOptions(Frozen):
    """Preferences and the ideal losses, in the order of the tasks; equal ones and zeros by default."""

    preference: PerTask = None
    reference: tuple[float, ...] | None = None


class StchOptions(ReferenceOptions):
    """`mu`: smoothing; a smaller one is nearer to the largest weighted loss."""

    mu: Positive = 1.0


class CosmosOptions(Frozen):
    """`strength` of the cosine between losses and preference."""

    strength: NotNegative = 1.0
    preference: PerTask = None


class PbiOptions(ReferenceOptions):
    """`theta`: penalty on the distance from the preferred direction."""

    theta: NotNegative = 5.0


@dataclass(frozen=True)
class Spec:
    """One of TorchJD's scalarizers."""

    options: type[Frozen]
    make: Callable[[Any, int], jd.Scalarizer]  # options, tasks
    positive: bool = False  # takes the losses' logarithm


def _preference(values: tuple[float, ...] | None, count: int) -> Tensor:
    return torch.full((count,), 1 / count) if values is None else torch.tensor(values)


SPECS: Mapping[str, Spec] = {
    "imtl_l": Spec(NoOptions, lambda o, n: jd.IMTLL(n)),
    "dwa": Spec(DwaOptions, lambda o, n: jd.DWA(o.temperature)),
    "stch": Spec(StchOptions, lambda o, n: jd.STCH(o.mu, vector(o.preference), vector(o.reference))),
    "geometric_mean": Spec(NoOptions, lambda o, n: jd.GeometricMean(), positive=True),
    "random": Spec(NoOptions, lambda o, n: jd.Random()),
    "cosmos": Spec(CosmosOptions, lambda o, n: jd.COSMOS(o.strength, _preference(o.preference, n))),
    "pbi": Spec(PbiOptions, lambda o, n: jd.PBI(o.theta, _preference(o.preference, n), vector(o.reference))),
}


class Scalarized(Balancer):
    """A balancer by one of TorchJD's scalarizers, of the weighted losses.

    Raises ConfigError where its options do not fit, TrainingError for a loss of 0 whose logarithm it would take.
    """

    _device: Tensor  # empty, where the losses are

    def __init__(
        self, name: str, weights: Mapping[str, float], kinds: Mapping[str, str], options: Mapping[str, Any]
    ) -> None:
        super().__init__(weights, kinds)
        self.name, self._positive = name, SPECS[name].positive
        checked = method_options(name, SPECS[name].options, weights, options)
        self.scalarizer = SPECS[name].make(checked, len(weights))
        self._factors: Tensor | None = None
        self.register_buffer("_device", torch.empty(0), persistent=False)

    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = self.weighted(losses)
        if self._positive:
            check_positive(self.name, values, self.weights)
        if values.requires_grad:
            values.register_hook(self._note)  # type: ignore[no-untyped-call]
        return self.scalarizer(values)

    def _note(self, gradient: Tensor) -> None:
        self._factors = gradient.detach() / self.loss_scale

    def end_epoch(self) -> None:
        if isinstance(self.scalarizer, jd.DWA):
            self.scalarizer.step()

    def log(self) -> dict[str, float]:
        """The factor by which each task's loss counted in the last step."""
        if self._factors is None:
            return dict(self.weights)
        pairs = zip(self.weights.items(), self._factors.tolist(), strict=True)
        return {task: factor * weight for (task, weight), factor in pairs}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # constants of TorchJD's that are neither parameters nor buffers
        for name in ("weights", "reference"):
            if isinstance(value := getattr(self.scalarizer, name, None), Tensor):
                setattr(self.scalarizer, name, fn(value))
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def get_extra_state(self) -> dict[str, Any]:
        """What the scalarizer remembers beside its parameters."""
        return dump_state(self.scalarizer)

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        load_state(self.scalarizer, state, self._device.device)


class Famo(Balancer):
    """Σ z_t·log(L_t) up to a factor, with weights z that follow how much each loss fell in the last step.

    It learns them by itself from `after_step`: they are no parameters of the module, so that no other optimizer moves
    them. Source: arXiv:2306.03792, algorithm 1.
    """

    relooks: ClassVar[bool] = True

    def __init__(
        self, weights: Mapping[str, float], kinds: Mapping[str, str], options: Mapping[str, Any]
    ) -> None:
        super().__init__(weights, kinds)
        checked = method_options("famo", FamoOptions, weights, options)
        least = vector(checked.least)
        self._least = torch.zeros(len(weights)) if least is None else least
        # in a tuple: a module would be registered, and its weights given to the optimizer
        self._famo = (jd.FAMO(len(weights), least, checked.lr, checked.weight_decay),)

    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = self.weighted(losses)
        check_positive("famo", values.detach(), self.weights, self._least.tolist())
        return self._famo[0](values)

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        values = self.weighted(losses).detach()
        check_positive("famo", values, self.weights, self._least.tolist())
        self._famo[0].update(values)

    def log(self) -> dict[str, float]:
        """The weights z; they add up to 1."""
        return dict(zip(self.weights, self._famo[0]._w.detach().softmax(0).tolist(), strict=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._famo[0]._apply(fn)  # type: ignore[no-untyped-call]
        self._least = fn(self._least)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def get_extra_state(self) -> dict[str, Any]:
        """The logits of the weights, their optimizer's state, and the losses that `after_step` compares with."""
        famo = self._famo[0]
        # a copy: the dict has the optimizer's own tensors
        optimizer = {} if famo._optimizer is None else copy.deepcopy(famo._optimizer.state_dict())
        before = {} if famo._prev_losses is None else {"before": famo._prev_losses.clone()}
        return {"logits": famo._w.detach().clone(), "optimizer": optimizer, **before}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        famo = self._famo[0]
        with torch.no_grad():
            famo._w.copy_(state["logits"])
        famo._prev_losses = state["before"].to(famo._w.device, copy=True) if "before" in state else None
        if state["optimizer"]:
            famo._optimizer = torch.optim.Adam([famo._w])
            famo._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


SCALARIZERS: Mapping[str, Callable[[Mapping[str, float], Mapping[str, str], Mapping[str, Any]], Balancer]] = {
    **{name: partial(Scalarized, name) for name in SPECS},
    "famo": Famo,
}
