"""A sample of a data set of the user's own as arrays to store, held to its specification and to the recipe's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from compactmtl.config.recipe import DataConfig
from compactmtl.data.cache import Arrays
from compactmtl.data.stored import input_layout, layout, own_size, stored_as
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec

_LENGTH_TOLERANCE = 0.01  # of normals, whose coding in 8 bits costs half of that
_MOST_INSTANCES = 2**15 - 1  # as they are stored


def checked(sample: Any, specs: Mapping[str, TargetSpec], config: DataConfig, where: str) -> Arrays:
    """A sample as arrays to store. Raises DataError, beginning with `where`, for what fits neither `config` nor its specification."""
    key, given = ("inputs", "{name: tensor}") if config.inputs else ("image", "tensor")
    if (
        not isinstance(sample, Mapping)
        or key not in sample
        or not isinstance(targets := sample.get("targets"), Mapping)
    ):
        raise DataError(f"{where} is not a Sample", f'give {{"{key}": {given}, "targets": {{name: tensor}}}}')
    if set(targets) != set(specs):
        raise DataError(
            f"{where}: targets are {', '.join(sorted(map(str, targets)))}; specs say {', '.join(sorted(specs))}",
            "give exactly the targets of specs",
        )
    size = config.size
    if config.inputs:
        arrays = _inputs(sample[key], config, where)
    else:
        arrays = {"image": _array(sample[key], (config.channels, *size), "uint8", f"{where}: image")}
    if "own_size" in sample:
        arrays |= own_size(_size(sample["own_size"], f"{where}: own_size"))
    for name, spec in specs.items():
        here = f"{where}: target {name} ({spec.kind})"
        kind = layout(spec, size)
        array = _array(targets[name], kind.shape, "int64" if kind.dtype != "float32" else "float32", here)
        if fault := _float_fault(spec, array) if kind.dtype == "float32" else None:
            raise DataError(f"{here} holds {fault}", "mark unknown values as TargetSpec says")
        if spec.kind in ("mask", "class"):
            wrong = (array < 0) | (array >= len(spec.classes))
            if spec.ignore_index is not None:
                wrong &= array != spec.ignore_index
            if wrong.any():
                raise DataError(
                    f"{here} holds {int(array[wrong][0])}; its {len(spec.classes)} classes are "
                    f"0 to {len(spec.classes) - 1}",
                    "mend the labels, or name an ignore_index in the TargetSpec",
                )
        if spec.kind == "instances" and (fault := _instances_fault(spec, array)):
            raise DataError(f"{here} holds {fault}", "see TargetSpec for the format")
        arrays[name] = array.astype(kind.dtype)
    return arrays


def _inputs(given: Any, config: DataConfig, where: str) -> Arrays:
    """The inputs of a sample as they are stored, each of the shape and type that `data.inputs` says."""
    names = ", ".join(config.inputs)
    if not isinstance(given, Mapping):
        raise DataError(
            f"{where}: inputs is a {type(given).__name__}", f"give a mapping of {names} to tensors"
        )
    if lacking := [name for name in config.inputs if name not in given]:
        raise DataError(
            f"{where}: gives no input {lacking[0]!r}, only {', '.join(map(str, given)) or 'none'}; data.inputs names {names}",
            'give all of them in sample["inputs"], or take the input out of data.inputs',
        )
    arrays: Arrays = {}
    for name, one in config.inputs.items():
        kind = input_layout(one, config.size)
        here = f"{where}: input {name} ({one.kind} of {one.channels})"
        array = _array(
            given[name],
            kind.shape,
            kind.dtype,
            here,
            f"give it as data.inputs.{name} says (pictures at data.size), or set data.inputs.{name}.channels",
        )
        if kind.dtype == "float32" and not np.isfinite(array).all():
            raise DataError(
                f"{here} holds a value that is not finite", "give numbers that the network can read"
            )
        arrays["image" if name == config.first else stored_as(name)] = array
    return arrays


def _float_fault(spec: TargetSpec, array: np.ndarray[Any, np.dtype[Any]]) -> str | None:
    """What is wrong with a target of real numbers."""
    if spec.kind == "scalar":
        return "an infinite value" if np.isinf(array).any() else None
    if not np.isfinite(array).all():
        return "a value that is not finite"
    if spec.kind == "multilabel" and not np.isin(array, (1, 0, -1)).all():
        return "a value other than 1 (present), 0 (absent) and -1 (unknown)"
    if spec.kind in ("depth", "disparity") and (array < 0).any():
        return "a negative value"
    if spec.kind == "normals":
        length = np.sqrt((array**2).sum(0))
        if (np.abs(length[length != 0] - 1) > _LENGTH_TOLERANCE).any():
            return "a vector that is neither of length 1 nor 0"
    return None


def _instances_fault(spec: TargetSpec, array: np.ndarray[Any, np.dtype[Any]]) -> str | None:
    numbers, labels = array
    if numbers.min() < -1 or numbers.max() > _MOST_INSTANCES:
        return f"an instance number outside -1 to {_MOST_INSTANCES}"
    own = labels[numbers > 0]
    if ((own < 0) | (own >= len(spec.classes))).any():
        return f"an instance of a class outside 0 to {len(spec.classes) - 1}"
    return None


def _size(given: Any, where: str) -> tuple[int, int]:
    """Height and width of an upright image. Raises DataError for anything else."""
    if (found := sides_of(given)) is None:
        raise DataError(
            f"{where} is {given!r}, expected height and width", "give those of the upright image in pixels"
        )
    return found


def sides_of(given: Any) -> tuple[int, int] | None:
    """Two whole numbers of 1 or more; none of any other value."""
    values = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if not isinstance(values, list | tuple) or len(values) != 2:
        return None
    if not all(isinstance(one, int | np.integer) and not isinstance(one, bool) and one > 0 for one in values):
        return None
    return int(values[0]), int(values[1])


def _array(
    value: Any,
    shape: Sequence[int],
    dtype: str,
    where: str,
    mend: str = "give it at config.size, in the format that TargetSpec describes",
) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # such as a list of lists of several lengths, or bfloat16
        raise DataError(
            f"{where} is no array: {error}", "give a tensor of whole numbers or floats"
        ) from error
    if array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
        raise DataError(
            f"{where} is {array.dtype} {array.shape}, expected {dtype} {tuple(shape)}",
            mend,
        )
    return array
