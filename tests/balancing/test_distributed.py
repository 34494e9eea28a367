"""Two processes with half of the batch each leave what one leaves with all of it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from compactmtl.balancing import GradientBalancer, balanced_backward, balancer

CASES = [
    ("upgrad", "shared_parameters"),
    ("upgrad", "features"),
    ("random_gradient", "features"),  # drawn at random: the first process decides
    ("graddrop", "shared_parameters"),
    ("gradnorm", "features"),
]


def network() -> tuple[nn.Module, nn.ModuleDict]:
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    return encoder, nn.ModuleDict({"a": nn.Linear(5, 3), "b": nn.Linear(5, 1)}).double()


def step(name: str, at: Any, part: slice) -> list[Tensor]:
    """All gradients after one step on a part of the batch."""
    encoder, heads = network()
    torch.manual_seed(2)
    x = torch.randn(8, 6, dtype=torch.float64)
    targets = {"a": torch.randn(8, 3, dtype=torch.float64), "b": 5 * torch.randn(8, 1, dtype=torch.float64)}
    features = encoder(x[part])
    losses = {task: (head(features) - targets[task][part]).square().mean() for task, head in heads.items()}
    method = balancer(name, list(heads), at=at)
    assert isinstance(method, GradientBalancer)
    torch.manual_seed(7 + part.start)  # the processes' generators differ
    balanced_backward(
        method,
        losses,
        [features],
        encoder.parameters(),
        {task: head.parameters() for task, head in heads.items()},
        penalty=0.1 * features.square().mean(),
    )
    return [p.grad for module in (encoder, heads) for p in module.parameters() if p.grad is not None]


def work(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gradients = {f"{name}/{at}": step(name, at, slice(4 * rank, 4 * rank + 4)) for name, at in CASES}
    torch.save(gradients, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, (port, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, at in CASES:
        whole = step(name, at, slice(0, 8))
        for one, other, alone in zip(first[f"{name}/{at}"], second[f"{name}/{at}"], whole, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-15)
            torch.testing.assert_close(one, alone, rtol=1e-9, atol=1e-12)  # float64; sums in another order
