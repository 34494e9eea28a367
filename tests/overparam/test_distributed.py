"""Factorized layers under DistributedDataParallel: two processes with half a batch each step as one with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from compactmtl.overparam import Kind, overparameterize


def network(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, groups=2),
        nn.Flatten(),
        nn.Linear(216, 2),
    )
    return overparameterize(plain.double(), kind)


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for kind in ("svd", "tucker", "expandnet_cl"):
        model = DistributedDataParallel(network(kind))
        step(model, images()[2 * rank : 2 * rank + 2])
        if rank == 0:
            torch.save(model.module.state_dict(), Path(folder) / f"{kind}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(600)  # two processes import torch, on one slow core
def test_two_processes_step_as_one(tmp_path: Path) -> None:
    spawn(work, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    kinds: tuple[Kind, ...] = ("svd", "tucker", "expandnet_cl")
    for kind in kinds:
        alone = network(kind)
        step(alone, images())
        together = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        for name, value in alone.state_dict().items():
            # the mean over two halves is the mean over all, in another order of float64
            torch.testing.assert_close(together[name], value, rtol=1e-9, atol=1e-12)
