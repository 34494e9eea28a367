"""Blocks of several branches that know how to become one layer: timm's `fuse`, `reparameterize`, `switch_to_deploy`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

_PROTOCOL = ("fuse", "reparameterize", "switch_to_deploy")


def fusable(model: nn.Module) -> list[str]:
    """Names of the outermost blocks below `model` that have one of the methods."""
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if name and not inside and any(callable(getattr(module, method, None)) for method in _PROTOCOL):
            names.append(name)
    return names


def fuse(model: nn.Module, names: Sequence[str]) -> None:
    """Contract the blocks named, and those inside them, in place.

    Raises KeyError for a name that the model does not have; what the blocks themselves raise passes through.
    """
    from timm.models import reparameterize_model

    modules = dict(model.named_modules())
    for name in names:
        block = modules[name]
        # timm walks the children of what it is given.
        holder = nn.ModuleDict({"block": block})
        reparameterize_model(holder, inplace=True)
        for parent in modules.values():
            for leaf, child in parent._modules.items():
                if child is block:
                    parent._modules[leaf] = holder["block"]
