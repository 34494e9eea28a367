"""Faults of a recipe or a machine that show up in training, as errors that name the recipe's keys to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import nn

from compactmtl.config import Recipe
from compactmtl.errors import CompactError, ConfigError, MachineError, machine_fault

# the messages of torch's functional norms where there is a single value to take statistics of
_ONE_VALUE = ("Expected more than 1 value per channel", "Expected more than 1 spatial element")


@contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Raise ConfigError for statistics of a single value and MachineError for memory and processes that ran out."""
    try:
        yield
    except CompactError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(_ONE_VALUE):
            raise _one_value(error, recipe) from error
        fault = machine_fault(error)
        if fault is None:
            raise
        height, width = recipe.data.size
        setting = f"data.batch_size is {recipe.data.batch_size}, data.size {height}x{width}"
        raise MachineError(
            f"{fault.message} ({setting}, data.workers {recipe.data.workers})", fault.hint
        ) from error


def _one_value(error: ValueError, recipe: Recipe) -> ConfigError:
    name = _layer(error.__traceback__)
    shape = str(error).partition("torch.Size(")[2].rstrip(")")
    instance = str(error).startswith(_ONE_VALUE[1])
    mend = "raise data.size so that its map is larger than 1x1"
    if not instance:
        mend = f"raise data.batch_size, which is {recipe.data.batch_size}, to 2 images or more; or {mend}"
    return ConfigError(
        f"{name} normalizes by the statistics of its input, which has one value per channel {shape}".rstrip(),
        mend,
    )


def _layer(trace: TracebackType | None) -> str:
    """The norm that a traceback goes through, by its name in the model."""
    names: dict[int, str] = {}
    norm = "a norm of the model"
    while trace is not None:
        owner: Any = trace.tb_frame.f_locals.get("self")
        model = getattr(owner, "model", owner)
        if not names and isinstance(model, nn.Module):
            names = {id(module): name for name, module in model.named_modules()}
        if isinstance(owner, nn.modules.batchnorm._NormBase):
            norm = f"the layer {names.get(id(owner)) or type(owner).__name__}"
        trace = trace.tb_next
    return norm
