"""The processes of `torch.distributed`'s default group: how many, which one this is, tensors averaged over them.

They exchange tensors of a GPU by NCCL and all else by gloo, see `launch`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compactmtl.distributed.peers import first_ended
from compactmtl.errors import MachineError, machine_fault

BUCKET = 25 * 2**20  # bytes that are sent as one, as DistributedDataParallel has it


def distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if distributed() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if distributed() else 0


def is_first() -> bool:
    """Whether this is the process that writes files and talks: the only one, or number 0."""
    return rank() == 0


@contextmanager
def reached() -> Iterator[None]:
    """Raise MachineError, second-hand, where another process has ended or no longer answers: with its reason, where it told it."""
    try:
        yield
    except RuntimeError as error:  # gloo and torch's DistError
        if (
            machine_fault(error) is not None
        ):  # of our own, such as a loader's death, which torch raises wherever we are
            raise
        raise _lost(error) from error


def _lost(error: RuntimeError) -> MachineError:
    ended = first_ended()
    if ended is None:
        lost = MachineError(
            f"process {rank()} of {world()} stops: another one has ended or no longer answers ({_plain(error)})",
            "a process that was killed, or a machine that is gone, cannot say why; torchrun shows each one's exit code or signal. "
            "Once that is mended give the same command with --resume",
        )
    else:
        lost = MachineError(
            f"process {rank()} of {world()} stops because process {ended.rank} on {ended.host} did: {ended.reason}",
            "mend that, and give the same command with --resume",
        )
    lost.second_hand = True
    return lost


def _plain(error: RuntimeError) -> str:
    """The first sentence of what gloo or NCCL says, without the place in their source and advice for their developers."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"^\[\S+:\d+\] ", "", first).partition(". ")[0].rstrip(".")


class _Sent:
    """A bucket of tensors of one type and device on its way: their sum over all processes."""

    def __init__(self, bucket: Sequence[Tensor]) -> None:
        self._bucket = bucket
        self._alone = len(bucket) == 1 and bucket[0].is_contiguous()
        self._flat = bucket[0].view(-1) if self._alone else torch.cat([one.reshape(-1) for one in bucket])
        with reached():
            self._work = dist.all_reduce(self._flat, async_op=True)

    def arrive(self, divisor: int) -> None:
        """Wait for the sum and put it, over `divisor`, into the tensors."""
        with reached():
            self._work.wait()
        if divisor != 1:
            self._flat /= divisor
        if self._alone:
            return
        pieces = self._flat.split([one.numel() for one in self._bucket])  # type: ignore[no-untyped-call]
        for one, piece in zip(self._bucket, pieces, strict=True):
            one.copy_(piece.view(one.shape))  # whatever the memory layout


@torch.no_grad()
def sum_over(tensors: Sequence[Tensor], divisor: int = 1) -> None:
    """Replace each tensor by its sum over all processes, over `divisor`, sent in buckets of one type and device.

    The tensors and their order must be alike on all.
    """
    for sent in [_Sent(bucket) for bucket in _buckets(tensors)]:
        sent.arrive(divisor)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes; alone they stay."""
    if distributed():
        sum_over(tensors, world())


@contextmanager
def averaging(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The gradients that a backward pass within leaves in `parameters` are averaged over all processes.

    Each bucket is sent as soon as all of it is there, while the pass goes on, in an order that is alike on all processes:
    from the last parameter to the first. Alone nothing happens.
    """
    if not distributed():
        yield
        return
    buckets = list(_buckets([p for p in reversed(list(parameters)) if p.requires_grad]))
    place = {id(parameter): number for number, bucket in enumerate(buckets) for parameter in bucket}
    missing = [len(bucket) for bucket in buckets]
    sent: list[_Sent] = []
    begun = 0

    @torch.no_grad()
    def send(number: int) -> None:
        gradients = [parameter.grad for parameter in buckets[number] if parameter.grad is not None]
        if gradients:
            sent.append(_Sent(gradients))

    def note(parameter: Tensor) -> None:
        nonlocal begun
        missing[place[id(parameter)]] -= 1
        while begun < len(buckets) and not missing[begun]:
            send(begun)
            begun += 1

    hooks = [one.register_post_accumulate_grad_hook(note) for bucket in buckets for one in bucket]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for number in range(begun, len(buckets)):  # of parameters that the pass does not reach
        send(number)
    with torch.no_grad():
        for one in sent:
            one.arrive(world())


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in their order, as many of one type and device as fit into a bucket."""
    bucket: list[Tensor] = []
    size = 0
    for one in tensors:
        length = one.numel() * one.element_size()
        apart = bool(bucket) and (bucket[0].dtype, bucket[0].device) != (one.dtype, one.device)
        if bucket and (apart or size + length > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(one)
        size += length
    if bucket:
        yield bucket


def first_process_decides(tensor: Tensor, device: torch.device) -> Tensor:
    """The first process's value, for methods that draw at random."""
    if not distributed():
        return tensor
    shared = tensor.to(device)
    with reached():
        dist.broadcast(shared, src=0)
    return shared.to(tensor.device)


class OwnDraws:
    """Random numbers of each process's own, for what is drawn for its part of a batch, such as dropout.

    They follow from the seed, the process and the place in training alone, so that nothing of them has to be saved.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._place: tuple[int, ...] = ()
        self._times = 0  # that numbers were drawn at this place

    @contextmanager
    def at(self, *place: int, device: torch.device) -> Iterator[None]:
        """torch's generators are this process's own for a while, and then what they were. Alone nothing happens.

        `place` are numbers of steps; at one place each time has other numbers.
        """
        if not distributed():
            yield
            return
        self._times = self._times + 1 if place == self._place else 0
        self._place = place
        text = "/".join(map(str, (self._seed, rank(), *place, self._times)))
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)
            yield
