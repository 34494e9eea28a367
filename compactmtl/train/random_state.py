"""The global random generators: seeded from the recipe, saved with a checkpoint and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")


def random_state(device: torch.device = CPU) -> dict[str, Any]:
    """Every global generator's state, loadable with weights_only=True; `device` is the one that training runs on.

    Of GPUs that this process has not touched nothing is kept: asking them would claim memory on each.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "devices": {str(one): _module(one).get_rng_state(one) for one in _in_use(device)},
        "device": str(_numbered(device)),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(words), next_gauss],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device = CPU) -> None:
    """Put every global generator back to where `random_state` found it.

    Training goes on on `device`, whose generator gets the state of the one that it ran on, whatever its number; other
    GPUs get theirs where this machine has them. A state of earlier versions is one list of all CUDA devices.
    """
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))
    now = _numbered(device)
    if "devices" in state:
        saved, former = dict(state["devices"]), torch.device(state["device"])
    else:
        saved = {f"cuda:{index}": value for index, value in enumerate(state["cuda"])}
        former = now if str(now) in saved else torch.device("cuda", 0)
    if now.type == former.type and str(former) in saved:
        own = saved.pop(str(former))
        saved.pop(str(now), None)
        _module(now).set_rng_state(own, now)
    for name, value in saved.items():
        other = torch.device(name)
        if now.type == other.type and (other.index or 0) < _module(other).device_count():
            _module(other).set_rng_state(value, other)


@contextmanager
def same_random_state(device: torch.device = CPU) -> Iterator[None]:
    """Put every global generator back to where it was, also where what happens between fails."""
    before = random_state(device)
    try:
        yield
    finally:
        restore_random_state(before, device)


def seed_everything(seed: int) -> None:
    """Seed every global generator from the recipe's one seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _module(device: torch.device) -> Any:
    """torch's module of a kind of device, such as torch.cuda."""
    module: Any = torch.get_device_module(device)
    return module


def _numbered(device: torch.device) -> torch.device:
    """The device with its number: plain `cuda` is the current one."""
    if str(device) != device.type or not _has_states(device):
        return device
    return torch.device(device.type, _module(device).current_device())


def _has_states(device: torch.device) -> bool:
    """Whether torch tells and takes the generator's state of each device of this kind, as for CUDA and XPU."""
    return hasattr(_module(device), "get_rng_state_all")


def _in_use(device: torch.device) -> list[torch.device]:
    """The devices of a training's kind that this process has touched, its own first."""
    if not _has_states(device):
        return []
    own, module = _numbered(device), _module(device)
    others = [
        torch.device(device.type, index) for index in range(module.device_count()) if index != own.index
    ]
    return [own, *(one for one in others if _touched(one))]


def _touched(device: torch.device) -> bool:
    """Whether this process holds memory on a device: then a stage of its own may draw there."""
    return bool(_module(device).memory_reserved(device))
