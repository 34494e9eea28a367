"""The torch device that a recipe or an option names."""

from __future__ import annotations

import torch

from compactmtl.errors import ConfigError, MissingDependencyError


def find_device(name: str, key: str = "train.device") -> torch.device:
    """The torch device of a recipe, or of the option `key`. Raises ConfigError or MissingDependencyError."""
    mend = f"{key} cpu" if key.startswith("-") else f"{key}=cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key}: {name!r} is not a torch device", "use cpu, cuda or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingDependencyError(
            f"{key}: {name} was asked for and this machine has {torch.cuda.device_count()} CUDA devices",
            f"add {mend}, or check the driver with `compactmtl doctor`",
        )
    return device
