"""Prove that surgery kept the function: both models on fresh inputs, at several batch sizes and resolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compactmtl.errors import SurgeryError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.copies import copy_model
from compactmtl.graph.inputs import as_arguments, copied, map_tensors, register_dataclasses, tensors_in
from compactmtl.graph.stages import first_line
from compactmtl.surgery.precise import in_double

_DOUBLE_LIMIT = 400_000_000  # parameters above which a second copy in float64 may not fit

# What is left of exact edits: sums in another order, and constants that were folded in float32 (1e-8 of the
# output over a whole network; 1e-6 in one that magnifies rounding, its own float32 error then being 1e-4). A wrong edit is off by far more. In float32 the two models' own rounding counts.
_TOLERANCE = {torch.float64: 1e-5}
_FLOAT32_TOLERANCE = 1e-4


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
    def failed_case(self) -> int:
        """The first case whose error is too large or that could not run."""
        wrong = [case.max_relative_error > self.tolerance for case in self.cases]
        return wrong.index(True) if True in wrong else len(self.cases)

    @property
    def passed(self) -> bool:
        return not self.failure and bool(self.cases) and self.max_relative_error <= self.tolerance


@dataclass(frozen=True)
class _Form:
    """How both models are run: in float64 or as they are, and whether their own casts are passed over."""

    double: bool
    precise: bool

    @property
    def dtype(self) -> torch.dtype | None:
        return torch.float64 if self.double else None


@dataclass(frozen=True)
class Reference:
    """What the original gives in eval mode: on the example, on fresh noise for twice the batch, and at another resolution."""

    inputs: tuple[tuple[Any, ...], ...]
    outputs: tuple[list[Tensor], ...]
    dtype: torch.dtype
    form: _Form


def _narrowest(model: nn.Module) -> torch.dtype:
    """The floating type with the fewest digits that a parameter has."""
    types = {value.dtype for value in model.parameters() if value.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def reference(original: nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any]) -> Reference:
    """Run the original, in float64 where that fits and where the model takes it.

    Batch sizes and resolutions that the original itself cannot run, or whose output holds nothing finite, are
    left out. Raises SurgeryError where that is so of the example.
    """
    example_inputs = as_arguments(original, example_inputs)
    small = sum(value.numel() for value in original.parameters()) <= _DOUBLE_LIMIT
    failure: Exception | None = None
    # A model that makes tensors of a fixed type on its way refuses float64 unless its casts are passed over. One of
    # several types, or that cannot do in float64 what it does, runs as it is.
    for form in (*((_Form(True, False), _Form(True, True)) if small else ()), _Form(False, False)):
        model = copy_model(original, dtype=form.dtype)
        inputs = [_cast(example_inputs, form.dtype)]
        try:
            outputs = [_outputs(model, inputs[0], form)]
        except Exception as error:
            failure = error
            continue
        _require_finite(original, outputs[0])
        for variant in _variants(inputs[0]):
            if len(inputs) > 1 and _shape(variant) == _shape(inputs[0]):
                continue  # fresh noise has been tried at another shape
            try:
                computed = _outputs(model, variant, form)
            except Exception:
                continue  # a batch size or resolution that the network does not take
            if all(_has_finite(value) for value in computed):
                inputs.append(variant)
                outputs.append(computed)
        narrow = torch.float64 if form.double else _narrowest(original)
        return Reference(tuple(inputs), tuple(outputs), narrow, form)
    assert failure is not None
    raise SurgeryError(
        f"{type(original).__name__} does not run on its example inputs: {first_line(failure)}",
        "pass example inputs that model(*example_inputs) accepts",
    ) from failure


def compare(
    expected: Reference, small: nn.Module, tolerance: float | None = None, case: int | None = None
) -> Proof:
    """Run the compact model on every case of the original, or on one `case` alone.

    `tolerance` is the largest error allowed, by default 1e-5 in float64 and 1e-4 in narrower types.
    """
    if tolerance is None:
        tolerance = _TOLERANCE.get(expected.dtype, _FLOAT32_TOLERANCE)
    dtype = str(expected.dtype).removeprefix("torch.")
    model = copy_model(small, dtype=expected.form.dtype)
    cases: list[Case] = []
    for position, (inputs, outputs) in enumerate(zip(expected.inputs, expected.outputs, strict=True)):
        if case is not None and position != case:
            continue
        try:
            computed = _outputs(model, inputs, expected.form)
        except Exception as error:
            return Proof(tuple(cases), tolerance, dtype, first_line(error))
        cases.append(Case(_shape(inputs), _error(outputs, computed)))
    return Proof(tuple(cases), tolerance, dtype)


def holder(
    original: nn.Module, model: nn.Module, expected: Reference, tolerance: float | None = None
) -> Callable[[], bool]:
    """Whether `model`, whose modules are being replaced, still passes the proof, and runs in training mode if the original does.

    Modules that pass their input on in eval mode, such as dropout of paths, compute with it in training.
    """
    inputs, form = expected.inputs[min(1, len(expected.inputs) - 1)], expected.form
    shapes = _training_shapes(original, inputs, form)
    return lambda: (
        compare(expected, model, tolerance).passed
        and (shapes is None or _training_shapes(model, inputs, form) == shapes)
    )


def _training_shapes(model: nn.Module, inputs: Sequence[Any], form: _Form) -> list[torch.Size] | None:
    """Shapes of the outputs in training mode; None where the model does not run in it."""
    own = copy_model(model, dtype=form.dtype)
    with borrowed(own, evaluate=False, weights=False), in_double() if form.precise else nullcontext():
        own.train()
        try:
            outputs = own(*copied(inputs))
            register_dataclasses(outputs)
            return [value.shape for value in tensors_in(outputs)]
        except Exception:
            return None


def prove(
    original: nn.Module,
    small: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    tolerance: float | None = None,
) -> Proof:
    """Compare the outputs of two models in eval mode: see `reference` and `compare`."""
    return compare(reference(original, example_inputs), small, tolerance)


def _outputs(model: nn.Module, inputs: Sequence[Any], form: _Form) -> list[Tensor]:
    """What a copy of one's own gives; a forward may write into its inputs, and each run begins as the first did."""
    with borrowed(model, weights=False), in_double() if form.precise else nullcontext():
        outputs = model(*copied(inputs))
        register_dataclasses(outputs)
        return tensors_in(outputs)


def _require_finite(original: nn.Module, outputs: Sequence[Tensor]) -> None:
    if outputs and not any(value.numel() for value in outputs):
        raise SurgeryError(
            f"all outputs of {type(original).__name__} are empty on the example inputs, so that nothing can be proved",
            "pass an example on which the model finds something, or lower the score that it asks for",
        )
    for position, value in enumerate(outputs):
        if not _has_finite(value):
            raise SurgeryError(
                f"output {position} of {type(original).__name__} holds nothing finite on the example inputs",
                "pass example inputs, and weights, that give finite outputs",
            )


def _has_finite(value: Tensor) -> bool:
    return value.numel() == 0 or bool(torch.isfinite(value).any())


def _error(expected: Sequence[Tensor], computed: Sequence[Tensor]) -> float:
    if len(expected) != len(computed):
        return float("inf")
    return max((_difference(one, other) for one, other in zip(expected, computed, strict=True)), default=0.0)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference as a share of the largest finite value; infinities have to agree."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if one.numel() == 0:
        return 0.0
    if not one.is_complex():
        one, other = one.double(), other.double()
    finite = torch.isfinite(one)
    same = (one == other) | (torch.isnan(one) & torch.isnan(other))
    if not bool((same | (finite & torch.isfinite(other))).all()):
        return float("inf")
    scale = float(one[finite].abs().max()) or 1.0
    return float(torch.where(same, 0.0, (one - other).abs()).max()) / scale


def _shape(inputs: Sequence[Any]) -> tuple[int, ...]:
    return next(tuple(leaf.shape) for leaf in tree_leaves(list(inputs)) if isinstance(leaf, Tensor))


def _cast(inputs: Sequence[Any], dtype: torch.dtype | None) -> tuple[Any, ...]:
    return map_tensors(
        lambda tensor: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor,
        inputs,
    )


def _variants(example_inputs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Fresh inputs for twice the batch, at another resolution of every image, and of the example's own shape."""
    generator = torch.Generator().manual_seed(0)

    def fresh(value: Tensor, shape: Sequence[int]) -> Tensor:
        if value.is_floating_point():
            noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
            return noise.to(value.device, value.dtype)
        # Whole numbers may be indices: only values that the example holds are known to be valid.
        drawn = torch.randint(max(1, value.numel()), tuple(shape), generator=generator).to(value.device)
        return value.ravel()[drawn] if value.numel() else value

    def doubled(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2 * shape[0], *shape[1:]) if shape else shape

    def larger(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-2], shape[-2] + 32, shape[-1] + 32) if len(shape) == 4 else shape

    def redrawn(change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> tuple[Any, ...]:
        def one(leaf: Any) -> Any:
            return fresh(leaf, change(tuple(leaf.shape))) if isinstance(leaf, Tensor) else leaf

        return tuple(tree_map(one, list(example_inputs)))

    shapes = [tuple(leaf.shape) for leaf in tree_leaves(list(example_inputs)) if isinstance(leaf, Tensor)]
    variants = [redrawn(doubled)]
    if any(len(shape) == 4 for shape in shapes):
        variants.append(redrawn(larger))
    return [*variants, redrawn(lambda shape: shape)]
