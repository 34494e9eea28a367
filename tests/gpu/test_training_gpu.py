"""Training on a real GPU: what is drawn, saved and shrunk is the CPU's, and batches arrive from page-locked memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compactmtl.balancing.dummies import random_head
from compactmtl.config import Resolved, resolve_recipe
from compactmtl.config.recipe import HeadConfig
from compactmtl.graph.float32 import float32_products
from compactmtl.models.heads import FCNHead
from compactmtl.sparsity import GroupLasso, ProximalStep, channel_groups, split_parameter_groups
from compactmtl.train.build import build_session
from compactmtl.train.machine import torch_settings
from compactmtl.train.random_state import random_state, restore_random_state
from tests.support.real_runs import SCENES

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("CUDA: torch sees no GPU")


@pytest.fixture
def resolved(tmp_path: Path) -> Resolved:
    path = tmp_path / "recipe.yaml"
    path.write_text(SCENES)
    return resolve_recipe(path, ["train.device=cuda"])


def test_dummy_heads_are_the_cpus() -> None:
    head = FCNHead(8, 3, HeadConfig(kind="fcn", width=4))
    on_cpu = random_head(head, "a", 0, 0).state_dict()
    before = torch.cuda.get_rng_state()
    on_gpu = random_head(head.cuda(), "a", 0, 0).state_dict()
    assert torch.equal(torch.cuda.get_rng_state(), before)
    for name, value in on_cpu.items():
        assert on_gpu[name].device.type == "cuda"
        assert torch.equal(on_gpu[name].cpu(), value)


def test_the_gpus_generator_goes_on_where_it_was() -> None:
    device = torch.device("cuda")
    torch.rand(3, device=device)
    state = random_state(device)
    expected = torch.rand(5, device=device)
    restore_random_state(state, device)
    assert torch.equal(torch.rand(5, device=device), expected)


def test_batches_are_page_locked(resolved: Resolved) -> None:
    with torch_settings(resolved.recipe):
        session = build_session(resolved.recipe)
        batch = next(iter(session.train_loader))
        assert batch["image"].is_pinned()
        assert all(target.is_pinned() for target in batch["targets"].values())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_proximal_step_is_the_cpus(name: str) -> None:
    def shrunk(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        image = torch.randn(2, 3, 8, 8)
        model, image = model.to(device), image.to(device)
        groups = channel_groups(model, (image,), scope="model")
        parameters = split_parameter_groups(model, groups, 0.0)
        optimizer: torch.optim.Optimizer
        if name == "sgd":
            optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        else:
            optimizer = torch.optim.AdamW(parameters, lr=0.01, fused=True)
        proximal = ProximalStep(optimizer, GroupLasso(groups, 0.05))
        with float32_products():
            for _ in range(5):
                optimizer.zero_grad()
                model(image).square().mean().backward()
                optimizer.step()
                proximal.step()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    for one, other in zip(shrunk("cuda"), shrunk("cpu"), strict=True):
        # sums in another order; Adam divides by roots of tiny second moments, which magnifies it
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
