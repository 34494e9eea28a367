"""Several processes of one test, joined by gloo: what each found comes back."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

Work = Callable[
    [int, Path], Any
]  # the process's number and the folder that all share; tensors and plain values


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def in_processes(work: Work, count: int, folder: Path) -> list[Any]:
    """What `work`, a function of a module, returns in each of `count` processes."""
    spawn(_run, (count, free_port(), work, str(folder)), nprocs=count)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(count)]


def _run(rank: int, count: int, port: int, work: Work, folder: str) -> None:
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    torch.save(work(rank, Path(folder)), Path(folder) / f"found-{rank}.pt")
    if count > 1:
        dist.destroy_process_group()
