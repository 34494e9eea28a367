"""This process as one of those that `torchrun` started: its place among them, read from the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from compactmtl.distributed.environment import processes
from compactmtl.distributed.peers import telling
from compactmtl.errors import ConfigError, MachineError, MissingDependencyError


@contextmanager
def launched(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, for a training on `device`; without torchrun nothing happens.

    `cpu` exchanges by gloo; `cuda` by NCCL, each process on the GPU of its own number on its machine, and by gloo what
    lies on the CPU. Raises ConfigError for another device, MissingDependencyError where there is no such GPU, MachineError
    where the processes do not find each other.
    """
    if processes() == 1:
        yield
        return
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or number:
        raise ConfigError(
            f"train.device: {device} cannot be shared by {processes()} processes",
            "set train.device=cuda, with which each process takes a GPU of its own, or train.device=cpu",
        )
    if kind == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise MissingDependencyError(
                f"train.device: process {local} of this machine has no GPU, there are {count}",
                f"start at most {count} processes on each machine" if count else "set train.device=cpu",
            )
        torch.cuda.set_device(local)
    try:
        store, rank, world = next(rendezvous("env://"))
        backend = "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"the {processes()} processes did not find each other: {str(error).splitlines()[0]}",
            "look at the endpoint that torchrun was given for the rendezvous, and whether the machines reach it",
        ) from error
    try:
        with telling(store, rank):  # before our connections close, by which the others know that we are gone
            yield
    finally:
        with suppress(RuntimeError):  # of a process that is gone
            dist.destroy_process_group()
