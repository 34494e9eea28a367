"""The device and the settings of torch that a recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compactmtl.config import Recipe
from compactmtl.errors import ConfigError, MissingDependencyError


def find_device(name: str) -> torch.device:
    """The torch device of a recipe. Raises ConfigError or MissingDependencyError."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"train.device: {name!r} is not a torch device", "use cpu, cuda or cuda:0"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingDependencyError(
            f"train.device: {name} was asked for and this machine has {torch.cuda.device_count()} CUDA devices",
            "add train.device=cpu, or check the driver with `compactmtl doctor`",
        )
    return device


@contextmanager
def torch_settings(recipe: Recipe) -> Iterator[None]:
    """The recipe's thread count and bit-equal kernels, undone at the end."""
    threads = torch.get_num_threads()
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = before
