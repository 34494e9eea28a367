"""Parity: does the artifact compute what the torch model computes? Names, shapes, dtypes, then values.

A structural difference or a value that is no number raises, each by its own error; values out of tolerance
are a result with `passed` False, so that a report can show by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.backends import Runner, get_backend, reference_target
from compactmtl.backends.torch.runner import as_array, device_of, named_outputs
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, GateError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.float32 import float32_products
from compactmtl.graph.inputs import Arguments, as_arguments, batch_size, copied, map_tensors, tensors_in
from compactmtl.verify.result import OutputParity, ParityResult
from compactmtl.verify.tally import Differences, Tally

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]  # positional or keyword arguments of the model


class ParityError(GateError):
    """The artifact can't be compared with, or isn't, the torch model."""


class NameMismatchError(ParityError):
    """Outputs are missing, unknown, or in another order."""


class ShapeMismatchError(ParityError):
    """An output has another shape than the torch model's."""


class DtypeMismatchError(ParityError):
    """An output has another dtype than the torch model's."""


class NonFiniteError(ParityError):
    """An output holds NaN or infinity."""


def check_parity(
    model: nn.Module,
    path: str | Path,
    example_inputs: Inputs | list[Any],
    *,
    target: Target | None = None,
    tolerance: float | None = None,
    output_names: Sequence[str] | None = None,
) -> ParityResult:
    """Compare the outputs of a model file with those of the module that it was exported from.

    Args:
        model: the reference. It is run in eval mode without gradients and left as it was.
        path: the exported file.
        example_inputs: a tensor, positional arguments, or a mapping of keyword arguments, batch first; or a list of such
            cases, with several batch sizes where the file's batch is free. Arguments may hold lists, dicts and
            dataclasses of tensors, as for `export_onnx`; the tensors in them are the file's inputs in order.
        target: backend, provider and tolerances. By default ONNX Runtime on the CPU.
        tolerance: largest |difference| as a share of the reference's range (max - min over all cases, at least 1 % of its
            largest magnitude; that magnitude where it is constant). It overrides the target's tolerance, which by default
            is that of its precision.
        output_names: names that the export gave to the outputs, where they are not the model's own.

    An output passes if the difference is within tolerance. It fails if the torch model's output hardly changes from sample
    to sample: a constant would pass too, and the comparison would show nothing. A single sample cannot show that.

    Raises:
        NameMismatchError, ShapeMismatchError, DtypeMismatchError, NonFiniteError: where an output is not comparable
            (exit code 4).
        ArtifactError: where the file cannot be opened or has other inputs.
    """
    chosen = target or reference_target()
    cases = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    if not cases:
        raise ArtifactError("parity needs at least one input", "give example inputs")

    def tolerance_of(name: str) -> float:
        return chosen.tolerance(name) if tolerance is None else tolerance

    with get_backend(chosen.backend).open(Path(path), chosen) as runner, borrowed(model):
        return _compare(model, runner, cases, tolerance_of, str(path), output_names)


def compare_outputs(
    model: nn.Module,
    runner: Runner,
    cases: Sequence[Inputs],
    target: Target,
    where: str,
    output_names: Sequence[str] | None = None,
) -> ParityResult:
    """As `check_parity`, of a model that is open already; `where` names it in errors."""
    with borrowed(model):
        return _compare(model, runner, cases, target.tolerance, where, output_names)


def _compare(
    model: nn.Module,
    runner: Runner,
    cases: Sequence[Inputs],
    tolerance_of: Callable[[str], float],
    where: str,
    output_names: Sequence[str] | None = None,
) -> ParityResult:
    tallies: dict[str, Tally] = {}
    samples = 0
    for case in cases:
        arguments = as_arguments(model, case)
        samples += batch_size(arguments)
        reference = reference_outputs(model, arguments, output_names)
        artifact = runner.run(to_arrays(runner, arguments))
        check_structure(reference, artifact, where)
        check_finite(reference, artifact, where)
        for name, array in reference.items():
            tallies.setdefault(name, Tally(array.shape)).add(array, artifact[name])
    if not samples:
        raise ArtifactError("parity needs at least one sample", "give example inputs that hold one")
    outputs = tuple(as_parity(name, tally.result(), tolerance_of(name)) for name, tally in tallies.items())
    return ParityResult(outputs=outputs, samples=samples, passed=all(output.passed for output in outputs))


def reference_outputs(
    model: nn.Module, arguments: Arguments, output_names: Sequence[str] | None = None
) -> dict[str, NDArray[Any]]:
    """The module's outputs by name, in eval mode without gradients, on its own device; it is left as it was."""
    device = device_of(model)
    with borrowed(model, weights=False), float32_products():  # each case begins as the first did
        placed = copied(map_tensors(lambda tensor: tensor.to(device), arguments))
        outputs = named_outputs(model(*placed), output_names)
    return {name: as_array(tensor) for name, tensor in outputs.items()}


def to_arrays(runner: Runner, arguments: Arguments) -> dict[str, NDArray[Any]]:
    """The tensors in the arguments by the runner's input names. Raises ArtifactError where the counts differ."""
    tensors = tensors_in(arguments)
    if len(tensors) != len(runner.input_names):
        raise ArtifactError(
            f"the artifact takes {len(runner.input_names)} inputs {list(runner.input_names)},"
            f" {len(tensors)} given",
            "give one tensor for each input, in the model's order",
        )
    return {name: tensor.numpy(force=True) for name, tensor in zip(runner.input_names, tensors, strict=True)}


def check_structure(
    reference: Mapping[str, NDArray[Any]], artifact: Mapping[str, NDArray[Any]], where: str
) -> None:
    """Raise NameMismatchError, ShapeMismatchError or DtypeMismatchError, in this order."""
    if list(reference) != list(artifact):
        raise NameMismatchError(
            f"{where}: the outputs are {list(artifact)}, the torch model's are {list(reference)}",
            "export again with the model's own output names in its order",
        )
    for name, expected in reference.items():
        array = artifact[name]
        if expected.shape != array.shape:
            raise ShapeMismatchError(
                f"{where}: output '{name}' has shape {array.shape}, the torch model's has {expected.shape}",
                "export again; the file is of another model or size",
            )
        if expected.dtype != array.dtype:
            raise DtypeMismatchError(
                f"{where}: output '{name}' is {array.dtype}, the torch model's is {expected.dtype}",
                "export again, with outputs kept in the model's precision",
            )


def check_finite(
    reference: Mapping[str, NDArray[Any]], artifact: Mapping[str, NDArray[Any]], where: str
) -> None:
    """Raise NonFiniteError where the torch model's or the artifact's outputs hold NaN or infinity."""
    for whose, arrays in (("the torch model", reference), (where, artifact)):
        for name, array in arrays.items():
            bad = int(array.size - np.isfinite(array).sum())
            if bad:
                raise NonFiniteError(
                    f"{whose}: output '{name}' has {bad} of {array.size} values that are NaN or infinite",
                    "check the weights for values that aren't finite and the inputs for their range",
                )


def as_parity(name: str, found: Differences, tolerance: float) -> OutputParity:
    """What was found of one output, held against a tolerance."""
    parity = OutputParity(
        name=name,
        shape=found.shape,
        max_abs=found.max_abs,
        max_relative=found.max_relative,
        scale=found.scale,
        cosine=found.cosine,
        tolerance=tolerance,
        passed=found.max_relative <= tolerance,
        variation=found.variation,
    )
    return parity.model_copy(update={"passed": parity.passed and not parity.blind})
