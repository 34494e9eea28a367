"""Activation checkpointing (`train.checkpoint_activations`): blocks of the encoder are computed again for the backward pass.

Of a block only what it is given is kept. Its second pass begins with the buffers of the first, leaves those of the network, such
as running statistics, as they are, and draws the random numbers of the first. Source: arXiv:1604.06174, section 4; torch.utils.checkpoint does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from compactmtl.data.base import Batch
from compactmtl.distributed.sums import is_joined, joined
from compactmtl.errors import ConfigError, machine_fault
from compactmtl.graph.copies import copy_model
from compactmtl.models import MultiTaskModel
from compactmtl.models.features import encoder_of
from compactmtl.surgery.slice_plan import Kept
from compactmtl.train.part import Part, Setup
from compactmtl.train.random_state import same_random_state

KEY = "train.checkpoint_activations"
# Of a block's output, between its two passes, by their norms: rounding is less, other random numbers are more.
SAME = 1e-3


class Recompute(Part):
    """Blocks of the encoder, whose forward passes with gradients keep nothing from inside them."""

    def __init__(self, model: MultiTaskModel) -> None:
        self.blocks = blocks_of(model)

    def forward_context(self, batch: Batch) -> AbstractContextManager[None]:
        return recomputed(self.blocks) if torch.is_grad_enabled() else nullcontext()

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        self.blocks = blocks_of(model)


def blocks_of(model: MultiTaskModel) -> dict[str, nn.Module]:
    """The blocks of a model's encoder by their names in it, or of the whole network where no encoder is known.

    A block is an element of a Sequential, ModuleList or ModuleDict, or a Sequential, of two layers with weights or more. Where
    there are series of such elements within each other it is an element of the innermost: a residual block and not its stage.
    """
    root = encoder_of(model) or model
    found = _blocks(root, root, element=False)
    names = {id(module): name for name, module in root.named_modules()}
    return {names[id(block)]: block for block in found}


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _blocks(module: nn.Module, root: nn.Module, *, element: bool) -> list[nn.Module]:
    if not _composite(module):
        return []
    inside = isinstance(module, _CONTAINERS)
    deeper = [block for child in module.children() for block in _blocks(child, root, element=inside)]
    if module is root or any(_is_series(one) for one in module.modules()):
        return deeper
    return [module] if element or isinstance(module, nn.Sequential) else deeper


def _composite(module: nn.Module) -> bool:
    """Whether it is made of several layers with weights."""
    layers = (one for one in module.modules() if any(True for _ in one.parameters(recurse=False)))
    return sum(1 for _ in layers) > 1


def _is_series(module: nn.Module) -> bool:
    """Whether it holds several blocks of one kind."""
    if not isinstance(module, _CONTAINERS):
        return False
    kinds = [type(child) for child in module.children() if _composite(child)]
    return len(set(kinds)) < len(kinds)


@contextmanager
def recomputed(blocks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within, the forward passes of `blocks` keep what they are given alone."""
    before = {name: vars(block).get("forward") for name, block in blocks.items()}
    for block in blocks.values():
        block.forward = _Again(block)
    try:
        yield
    finally:
        for name, block in blocks.items():
            own = before[name]
            if own is None:
                del block.forward
            else:
                block.forward = own


class _Again:
    """A block's own forward pass, run a second time in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._forward: Callable[..., Any] = block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        contexts = (nullcontext(), _Second(self._block, together=is_joined()))
        return checkpoint(self._forward, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)


class _Second:
    """What the second pass of a block happens in: as many times as gradients are asked for, one after the other.

    It has the buffers that the first had, and what it writes into them is thrown away. Of several processes' parts of a batch, normalization is over all again.
    """

    def __init__(self, block: nn.Module, *, together: bool) -> None:
        self._together = together
        self._stack = ExitStack()
        self._before = [
            (one, name, None if value is None else value.clone())
            for one in block.modules()
            for name, value in one._buffers.items()
        ]

    def __enter__(self) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(_other_buffers(self._before))
        if self._together:
            self._stack.enter_context(joined())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


Buffers = list[tuple[nn.Module, str, Tensor | None]]


@contextmanager
def _other_buffers(values: Buffers) -> Iterator[None]:
    """Modules have copies of other buffers for a while."""
    held = [(one, name, one._buffers[name]) for one, name, _ in values]
    for one, name, value in values:
        one._buffers[name] = None if value is None else value.clone()
    try:
        yield
    finally:
        for one, name, kept in held:
            one._buffers[name] = kept


class _Compared:
    """A block's own forward pass in a check: whether its second pass gives what the first gave."""

    def __init__(self, block: nn.Module) -> None:
        self._forward: Callable[..., Any] = block.forward
        self._first: dict[
            tuple[int, ...], list[list[Tensor]]
        ] = {}  # by where the tensors lie that it was given
        self.again = False  # whether its passes are second ones
        self.same = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = tuple(one.data_ptr() for one in _tensors((args, kwargs)))
        output = self._forward(*args, **kwargs)
        values = [one.detach().clone() for one in _tensors(output)]
        first = self._first.setdefault(key, [])
        if not self.again:
            first.append(values)
        elif first and not any(_alike(values, one) for one in first):
            self.same = False
        return output


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


def _alike(values: list[Tensor], others: list[Tensor]) -> bool:
    """Whether they are equal but for what a GPU sums in another order; what is not finite says nothing."""
    apart = [
        float((one.double() - other.double()).norm() - SAME * other.double().norm())
        for one, other in zip(values, others, strict=True)
    ]
    return not any(one > 0 for one in apart)


def check_blocks(model: MultiTaskModel, inputs: tuple[Tensor, ...]) -> None:
    """Raise ConfigError where a model has no blocks that it calls, or these cannot be computed again.

    It passes two images on a copy; weights, statistics and random generators stay.
    """
    copied = copy_model(model).train()
    blocks = blocks_of(copied)
    called: set[str] = set()
    compared: dict[str, _Compared] = {}
    for name, block in blocks.items():
        block.register_forward_pre_hook(lambda module, args, name=name: called.add(name))
        block.forward = compared[name] = _Compared(block)
    images: Any = tuple(torch.cat([one, one]) for one in inputs)
    with same_random_state(inputs[0].device), torch.enable_grad():
        try:
            with recomputed(blocks), set_checkpoint_early_stop(False):
                _, outputs = copied.pass_through(images if len(images) > 1 else images[0])
            for one in compared.values():
                one.again = True
            torch.stack([one.float().square().mean() for one in outputs.values()]).sum().backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if machine_fault(error) is not None:
                raise
            raise ConfigError(
                f"{KEY}: the network cannot be computed again block by block: "
                + str(error).splitlines()[0].partition(" Hint: ")[0],
                "let no block change what it is given in place, or leave it out: train.accumulate lowers memory too",
            ) from error
    if other := [name for name, one in compared.items() if not one.same]:
        raise ConfigError(
            f"{KEY}: block {other[0]} of the {'network' if encoder_of(model) is None else 'encoder'} gives something else when it is "
            "computed again, so that its gradients would be wrong",
            "it keeps something between two calls, or draws from a random generator that is not torch's own: take that out of its "
            "forward, or leave the key out",
        )
    if not called:
        raise ConfigError(
            f"{KEY}: the network calls no blocks that could be computed again"
            + (f"; it has {', '.join(list(blocks)[:3])}" if blocks else ""),
            "build it of blocks: modules of several layers in an nn.Sequential or nn.ModuleList; or leave it out",
        )


def build_recompute(setup: Setup) -> Recompute | None:
    """The recipe's `train.checkpoint_activations`, or None. Raises ConfigError where the network does not allow it."""
    if not setup.recipe.train.checkpoint_activations:
        return None
    check_blocks(setup.model, setup.inputs)
    return Recompute(setup.model)
