"""Faults of a recipe or a machine that show up in training, as errors that name the recipe's keys to change."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import nn

from compactmtl.config import Recipe
from compactmtl.errors import CompactError, ConfigError, MachineError, machine_fault
from compactmtl.train.machine import CUBLAS, CUBLAS_FIXED

# the messages of torch's functional norms where there is a single value to take statistics of
ONE_VALUE = ("Expected more than 1 value per channel", "Expected more than 1 spatial element")

# torch's message of an operator under use_deterministic_algorithms
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Raise ConfigError for statistics of a single value and operators that are not deterministic, and MachineError for
    memory and processes that ran out."""
    try:
        yield
    except CompactError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(ONE_VALUE):
            raise _one_value(error, recipe) from error
        if isinstance(error, RuntimeError) and (unordered := _without_order(error, recipe)):
            raise unordered from error
        fault = machine_fault(error)
        if fault is None:
            raise
        height, width = recipe.data.size
        parts = f" in {recipe.train.accumulate} parts" if recipe.train.accumulate > 1 else ""
        setting = f"data.batch_size is {recipe.data.batch_size}{parts}, data.size {height}x{width}"
        raise MachineError(
            f"{fault.message} ({setting}, data.workers {recipe.data.workers})", fault.hint
        ) from error


def _without_order(error: RuntimeError, recipe: Recipe) -> ConfigError | None:
    """What torch says where train.deterministic meets an operator that sums in no fixed order; None for other errors."""
    if found := _NOT_DETERMINISTIC.search(str(error)):
        return ConfigError(
            f"{found[1]} has no deterministic version on {recipe.train.device}, and train.deterministic asks for one",
            "set train.deterministic=false: two runs then differ in the last digits",
        )
    if CUBLAS in str(error):
        return ConfigError(
            f"{CUBLAS} is {os.environ.get(CUBLAS)!r}, with which cuBLAS sums in no fixed order",
            f"set it to {CUBLAS_FIXED} or unset it before Python starts; or set train.deterministic=false",
        )
    return None


def _one_value(error: ValueError, recipe: Recipe) -> ConfigError:
    name = _layer(error.__traceback__)
    shape = str(error).partition("torch.Size(")[2].rstrip(")")
    instance = str(error).startswith(ONE_VALUE[1])
    mend = "raise data.size so that its map is larger than 1x1"
    if not instance:
        more = f"raise data.batch_size, which is {recipe.data.batch_size}, to 2 images or more"
        if recipe.train.accumulate > 1:
            more = f"lower train.accumulate, which is {recipe.train.accumulate}, so that each part has 2 images or more"
        mend = f"{more}; or {mend}"
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
