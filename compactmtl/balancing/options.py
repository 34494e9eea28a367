"""Options of balancing methods, checked against their tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from compactmtl.config.schema import Frozen
from compactmtl.config.validate import validate_options
from compactmtl.errors import ConfigError

NotNegative = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
PerTask = tuple[NotNegative, ...] | None  # in the order of the tasks

F = TypeVar("F", bound=Frozen)


def method_options(name: str, schema: type[F], tasks: Collection[str], options: Mapping[str, Any]) -> F:
    """The recipe's `balancing.options` as `schema`.

    Raises ConfigError for an unknown or wrong option, and where a list does not have one value for each task.
    """
    checked = validate_options(schema, options, "balancing.options")
    for key, values in checked.model_dump().items():
        if isinstance(values, tuple | list) and len(values) != len(tasks):
            raise ConfigError(
                f"balancing.options.{key} of {name}: {len(values)} values for {len(tasks)} tasks",
                f"give one for each of {', '.join(tasks)}",
            )
    return checked


def vector(values: Collection[float] | None) -> Tensor | None:
    """A tensor of the values, or None of None."""
    return None if values is None else torch.tensor(list(values))
