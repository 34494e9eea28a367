"""Questions that an algorithm asks of values on a device, put so that the answers of many cost one wait.

Python branches on a value only after the device has computed it. On the CPU that costs nothing; elsewhere each answer is a
wait for all that is queued. So an algorithm over one family of channel groups is a generator: it yields questions, bool
tensors (q,), and is sent the answers. Where waiting is free each family runs to its end; elsewhere all families ask
together, and the number of waits does not grow with that of families.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Asking = Generator[Tensor, list[bool], T]  # yields bool tensors (q,), returns T


def on_host(device: torch.device) -> bool:
    """Whether reading a value on `device` waits for nothing."""
    return device.type == "cpu"


def answered(asking: Asking[T]) -> T:
    """What the algorithm returns, its questions answered one by one."""
    try:
        question = next(asking)
        while True:
            question = asking.send(question.tolist())
    except StopIteration as done:
        result: T = done.value
        return result


def answered_together(askings: Iterable[Asking[T]]) -> list[T]:
    """What each algorithm returns; the questions of all that still ask are answered by one read a round."""
    results: dict[int, T] = {}
    pending: dict[int, tuple[Asking[T], Tensor]] = {}
    order = list(askings)
    for index, asking in enumerate(order):
        _advance(index, asking, None, pending, results)
    while pending:
        questions = [question for _, question in pending.values()]
        answers = iter(read(questions))
        for index, (asking, question) in list(pending.items()):
            del pending[index]
            own = [bool(next(answers)) for _ in range(len(question))]
            _advance(index, asking, own, pending, results)
    return [results[index] for index in range(len(order))]


def read(vectors: Sequence[Tensor]) -> list[bool]:
    """The values of bool tensors, each (q,), one after the other, by one read; they may lie on several devices."""
    if not vectors:
        return []
    device = vectors[0].device
    values: list[bool] = torch.cat([vector.to(device) for vector in vectors]).tolist()
    return values


def _advance(
    index: int,
    asking: Asking[T],
    answers: list[bool] | None,
    pending: dict[int, tuple[Asking[T], Tensor]],
    results: dict[int, T],
) -> None:
    try:
        question = next(asking) if answers is None else asking.send(answers)
    except StopIteration as done:
        results[index] = done.value
    else:
        pending[index] = (asking, question)
