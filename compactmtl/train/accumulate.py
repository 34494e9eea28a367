"""A batch that passes in parts (`train.accumulate`): losses of the whole batch, whose gradients are computed part by part.

A first pass over all parts, without a graph, finds what the losses sum over the batch. Each loss is then one node of the graph:
where its gradient is asked for, the parts pass again, each with its own graph, and their gradients are added up. So a step sees
losses and gradients of the whole batch, whatever balances them, and memory holds the graph of one part at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.balancing import still_statistics
from compactmtl.data.base import Batch
from compactmtl.data.inputs import Images, between, count, given, parts
from compactmtl.distributed.in_parts import Sums
from compactmtl.errors import TrainingError
from compactmtl.train.random_state import random_state, restore_random_state, same_random_state

# Of a sum, between two passes: in float32 another order of sums is off by far less, another dropout by far more.
SAME = 1e-2

Values = Mapping[str, Tensor]
Run = Callable[[int, Batch], Values]  # the number of a part and the part, to scalars with their graph


def split(batch: Batch, number: int) -> list[Batch]:
    """The batch in `number` parts of about as many images, in order; none is empty where it has as many."""
    if number == 1:
        return [batch]
    whole = count(given(batch))
    marks = [whole * place // number for place in range(number + 1)]
    return [_rows(batch, first, last) for first, last in pairwise(marks)]


def _rows(batch: Batch, first: int, last: int) -> Batch:
    part: Batch = {
        "image": batch["image"][first:last],
        "targets": {name: target[first:last] for name, target in batch["targets"].items()},
    }
    if "inputs" in batch:
        images: Images = between(batch["inputs"], first, last)
        part["inputs"] = parts(images)
    if "sources" in batch:
        part["sources"] = batch["sources"][first:last]
    return part


def number_of_parts(images: int, most: int, processes: int) -> int:
    """Into how many parts a batch of `images` is split, so that none has more than `most`; alike on all processes.

    Each process has an image in each part.
    """
    return max(1, min(-(-images // most), images // processes))


class InParts:
    """Scalars of a whole batch, as a function of parameters, of which one part's graph is held at a time.

    `run` is called with every part `passes` times at first and once more whenever a gradient is asked for, each time with the
    random numbers of the first time. Running statistics of `modules` learn from the first call alone.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        run: Run,
        modules: Sequence[nn.Module],
        device: torch.device,
        *,
        passes: int = 1,
        check: bool = False,
    ) -> None:
        """`passes` is how many it takes until all sums are known: one more than they are nested. With `check` what is computed
        again is compared with the first time."""
        self._batches, self._run, self._modules, self._device = batches, run, modules, device
        self._passes, self._check = passes, check
        self._sums = Sums()
        self._random = random_state(device)
        self._names: tuple[str, ...] = ()

    def values(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The scalars by name, with a graph to those of `parameters` that ask for a gradient."""
        found: Values = {}
        for number in range(self._passes):
            if number:
                restore_random_state(self._random, self._device)
            with torch.no_grad(), ExitStack() as stack:
                for module in self._modules if number else ():
                    stack.enter_context(still_statistics(module))
                self._sums.begin()
                for place, batch in enumerate(self._batches):
                    with self._sums.part(last=place == len(self._batches) - 1):
                        found = self._run(place, batch)  # of the last part: the whole batch's
            self._sums.learn()
        self._names = tuple(found)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        values = [value.detach().clone() for value in found.values()]
        return dict(zip(self._names, _Whole.apply(self, values, *trained), strict=True))

    def gradients(self, slopes: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradient of Σ slope · scalar by each of `parameters`, over all parts; None where there is none.

        Raises TrainingError where the network gives something else the second time.
        """
        sums: list[Tensor | None] = [None] * len(parameters)
        with same_random_state(self._device), ExitStack() as stack:
            restore_random_state(self._random, self._device)
            for module in self._modules:
                stack.enter_context(still_statistics(module))
            self._sums.begin()
            for place, batch in enumerate(self._batches):
                for index, gradient in enumerate(self._of_part(place, batch, slopes, parameters)):
                    if gradient is not None:
                        before = sums[index]
                        sums[index] = gradient if before is None else before + gradient
        if self._check:
            self._check_same()
        return sums

    def _of_part(
        self, place: int, batch: Batch, slopes: Sequence[Tensor | None], parameters: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The gradients of one part, whose graph is gone with it."""
        with torch.enable_grad(), self._sums.part():
            values = self._run(place, batch)
        asked = [
            (values[name], slope)
            for name, slope in zip(self._names, slopes, strict=True)
            if slope is not None and values[name].requires_grad
        ]
        if not asked or not parameters:
            return []
        ends, starts = zip(*asked, strict=True)
        return torch.autograd.grad(ends, list(parameters), starts, allow_unused=True)

    def _check_same(self) -> None:
        self._check = False
        apart = self._sums.apart()
        if not apart <= SAME and apart == apart:  # what is not finite the loop finds
            raise TrainingError(
                f"train.accumulate: a part of the batch that passes the network again gives other losses ({apart:.1%} apart), so "
                "that its gradients are not those of the batch",
                "the network keeps something between two calls, or draws from a random generator of its own: leave "
                "train.accumulate out, or take that out of its forward",
            )


class _Whole(torch.autograd.Function):
    """Scalars that are known, whose gradients are computed where they are asked for."""

    @staticmethod
    def forward(
        ctx: Any, passes: InParts, values: Sequence[Tensor], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.passes, ctx.parameters = passes, parameters
        ctx.set_materialize_grads(False)
        return tuple(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = [
            parameter
            for parameter, needs in zip(ctx.parameters, ctx.needs_input_grad[2:], strict=True)
            if needs
        ]
        found = iter(ctx.passes.gradients(slopes, needed))
        return (None, None, *(next(found) if needs else None for needs in ctx.needs_input_grad[2:]))
