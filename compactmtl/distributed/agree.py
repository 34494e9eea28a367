"""What the processes of a training agree on: whether to stop, what the first one found, that all are still alike.

Messages are JSON or a few numbers, on the CPU. Alone each function returns what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from compactmtl.distributed.processes import distributed, is_first, rank, reached, world
from compactmtl.errors import CompactError, TrainingError

T = TypeVar("T")


def totals(values: Sequence[float]) -> list[float]:
    """Each number's sum over all processes."""
    if not distributed():
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    with reached():
        dist.all_reduce(numbers)
    return [float(one) for one in numbers.tolist()]


def anyone(asks: bool) -> bool:
    """Whether it is so on any process."""
    return totals([float(asks)])[0] > 0


def gathered(value: Any) -> list[Any]:
    """What each process gives, values that JSON can hold, in the order of the processes."""
    if not distributed():
        return [value]
    mine = _packed(value)
    sizes = torch.zeros(world(), dtype=torch.int64)
    sizes[rank()] = len(mine)
    with reached():
        dist.all_reduce(sizes)
        rows = [torch.zeros(int(sizes.max()), dtype=torch.uint8) for _ in range(world())]
        padded = torch.cat([mine, mine.new_zeros(int(sizes.max()) - len(mine))])
        dist.all_gather(rows, padded)
    return [_unpacked(row[:size]) for row, size in zip(rows, sizes.tolist(), strict=True)]


def first_does(work: Callable[[], T]) -> T:
    """What `work` returns on the first process, which alone runs it: a value that JSON can hold, or None.

    Where it fails there, all processes stop: the others raise TrainingError with its message.
    """
    if not distributed():
        return work()
    if not is_first():
        answer = _broadcast(None)
        if answer["failed"] is not None:
            error = TrainingError(f"process {rank()} stops with the first one: {answer['failed']}")
            error.second_hand = True
            raise error
        value: T = answer["value"]
        return value
    try:
        found = work()
    except BaseException as error:
        message = error.message if isinstance(error, CompactError) else f"{type(error).__name__}: {error}"
        _broadcast({"failed": message, "value": None})
        raise
    _broadcast({"failed": None, "value": found})
    return found


def wait() -> None:
    """Wait until every process is here."""
    totals([0.0])


def check_alike(facts: Mapping[str, int], when: str) -> None:
    """Raise TrainingError on all processes, naming the first fact that differs and where, unless all have the same."""
    if not distributed():
        return
    found = gathered(dict(facts))
    for name in facts:
        others = [number for number, one in enumerate(found) if one.get(name) != found[0].get(name)]
        if others:
            which = ", ".join(map(str, others))
            raise TrainingError(
                f"{when} {name} differ between process 0 and {'process' if len(others) == 1 else 'processes'} {which}: "
                "from here on each would train another network",
                "start again from the last checkpoint with --resume; run all processes on processors or GPUs of one kind "
                "with the same packages, and report it where they are",
            )


def digest(tensors: Sequence[Tensor]) -> int:
    """A number that changes with any bit of the tensors: sums of their bytes' words, weighed by place and order."""
    total = 0
    for number, one in enumerate(tensors, 1):
        words = one.detach().contiguous().reshape(-1).view(torch.uint8)
        if len(words) % 8 == 0 and len(words):
            words = words.view(torch.int64)
        places = torch.arange(1, len(words) + 1, device=words.device)
        # int64 wraps around, alike everywhere
        total = (total * 1_000_003 + number + int((words.long() * places).sum())) % 2**53
    return total


def _broadcast(value: Any) -> Any:
    packed = _packed(value) if is_first() else torch.zeros(0, dtype=torch.uint8)
    size = torch.tensor([len(packed)])
    with reached():
        dist.broadcast(size, src=0)
        if not is_first():
            packed = torch.zeros(int(size), dtype=torch.uint8)
        dist.broadcast(packed, src=0)
    return _unpacked(packed)


def _packed(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Any:
    return json.loads(bytes(packed.tolist()))
