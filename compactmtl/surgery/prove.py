"""Prove that surgery kept the function: both models on fresh inputs, at several batch sizes and resolutions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compactmtl.errors import SurgeryError
from compactmtl.graph.trace import evaluating

_DOUBLE_LIMIT = 400_000_000  # parameters above which a second copy in float64 may not fit


@dataclass(frozen=True)
class Case:
    """One input and the largest error over all outputs, as a share of the output's largest value."""

    shape: tuple[int, ...]
    max_relative_error: float


@dataclass(frozen=True)
class Proof:
    """Every case tried; `failure` is set where the compact model could not run at all."""

    cases: tuple[Case, ...]
    tolerance: float
    dtype: str
    failure: str = ""

    @property
    def max_relative_error(self) -> float:
        return max((case.max_relative_error for case in self.cases), default=0.0)

    @property
    def passed(self) -> bool:
        return not self.failure and self.max_relative_error <= self.tolerance


def prove(
    original: nn.Module, small: nn.Module, example_inputs: Sequence[Tensor], tolerance: float = 1e-4
) -> Proof:
    """Compare the outputs of two models in eval mode on the example and on fresh random inputs.

    In float64 where both fit. Batch sizes and resolutions that the original model itself cannot run are
    left out. Raises SurgeryError where the original cannot run the example.
    """
    double = sum(p.numel() for p in original.parameters()) <= _DOUBLE_LIMIT
    dtype = torch.float64 if double else next((p.dtype for p in original.parameters()), torch.float32)
    one, other = (copy.deepcopy(model).to(dtype) for model in (original, small))
    cases: list[Case] = []
    with evaluating(one), evaluating(other), torch.inference_mode():
        for position, inputs in enumerate(_inputs(example_inputs, dtype)):
            try:
                expected = _outputs(one, inputs)
            except Exception as error:
                if position == 0:
                    raise SurgeryError(
                        f"{type(original).__name__} does not run on its example inputs: {error}",
                        "pass example inputs that model(*example_inputs) accepts",
                    ) from error
                continue
            try:
                found = _outputs(other, inputs)
            except Exception as error:
                return Proof(tuple(cases), tolerance, str(dtype), f"{type(error).__name__}: {error}")
            cases.append(Case(tuple(inputs[0].shape), _error(expected, found)))
    return Proof(tuple(cases), tolerance, str(dtype).removeprefix("torch."))


def _outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]


def _error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        scale = float(one.abs().max()) or 1.0
        error = float((one - other).abs().max()) / scale
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _inputs(example_inputs: Sequence[Tensor], dtype: torch.dtype) -> list[list[Tensor]]:
    """The example itself, fresh noise of its shape, twice the batch, and another resolution of every image."""
    generator = torch.Generator().manual_seed(0)

    def fresh(value: Tensor, shape: Sequence[int]) -> Tensor:
        if not value.is_floating_point():
            return value
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(value.device, dtype)

    shapes = [tuple(value.shape) for value in example_inputs]
    doubled = [(2 * shape[0], *shape[1:]) if shape else shape for shape in shapes]
    larger = [(*shape[:-2], shape[-2] + 32, shape[-1] + 32) if len(shape) == 4 else shape for shape in shapes]
    as_given = [value.to(dtype) if value.is_floating_point() else value for value in example_inputs]
    cases = [as_given]
    for variant in (shapes, doubled, larger):
        if variant is shapes or variant != shapes:
            cases.append([fresh(value, shape) for value, shape in zip(example_inputs, variant, strict=True)])
    return cases
