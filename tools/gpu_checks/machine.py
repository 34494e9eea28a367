"""Checks of what is around the training: a process group over NCCL, and the tests that need a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compactmtl.balancing import GradientBalancer, balanced_backward, balancer
from compactmtl.errors import MissingDependencyError
from tools.gpu_checks import CheckFailed, Setting

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("upgrad", "mgda")
SAME = 1e-6  # one process: a sum over processes has one term
NO_TEST = 5  # pytest's exit code where no test was found


def process_group(setting: Setting) -> dict[str, Any]:
    """Gradients that are reduced over processes, with a single one, against those of no group."""
    device = torch.device(setting.device)
    kind = "nccl" if setting.on_gpu else "gloo"
    if not dist.is_available() or (setting.on_gpu and not dist.is_nccl_available()):
        raise MissingDependencyError(
            f"this build of torch has no {kind}", "install a CUDA build of torch for Linux"
        )
    if setting.on_gpu:
        torch.cuda.set_device(device)
    expected = {name: _gradients(name, device) for name in METHODS}
    file = setting.folder / "group"
    dist.init_process_group(kind, init_method=file.absolute().as_uri(), rank=0, world_size=1)
    try:
        number = torch.ones(3, device=device)
        dist.all_reduce(number)
        if not torch.equal(number, torch.ones_like(number)):
            raise CheckFailed(f"the sum over one process is {number.tolist()}")
        found = {name: _gradients(name, device) for name in METHODS}
        dist.barrier()
    finally:
        dist.destroy_process_group()
    worst = max(
        float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))
        for name in METHODS
        for one, other in zip(found[name], expected[name], strict=True)
    )
    if not worst <= SAME:
        raise CheckFailed(f"gradients differ by {worst:.1e}", {"worst": worst})
    return {"worst": worst, "backend": kind}


def _gradients(name: str, device: torch.device) -> list[Tensor]:
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    heads = nn.ModuleDict({"a": nn.Linear(5, 3), "b": nn.Linear(5, 1)}).double()
    x = torch.randn(8, 6, dtype=torch.float64).to(device)
    encoder.to(device)
    heads.to(device)
    features = encoder(x)
    losses = {task: (head(features) - 1).square().mean() for task, head in heads.items()}
    method = balancer(name, list(heads)).to(device)
    assert isinstance(method, GradientBalancer)
    own = {task: head.parameters() for task, head in heads.items()}
    balanced_backward(method, losses, [features], encoder.parameters(), own)
    return [p.grad.clone() for module in (encoder, heads) for p in module.parameters() if p.grad is not None]


def pytest_gpu(setting: Setting) -> dict[str, Any]:
    """`pytest -m gpu` in a process of its own. In a rehearsal its tests skip, and are only collected."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        "-rs",
        "tests/gpu",
    ]
    if setting.tiny:
        command.append("--collect-only")
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    lines = found.stdout.strip().splitlines()
    said = lines[-1] if lines else found.stderr.strip()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    skipped = re.findall(r"^SKIPPED .*", found.stdout, re.MULTILINE)
    measured = {"said": said.strip("= "), "skipped": skipped, "failed": failed}
    if found.returncode == NO_TEST or "no module named pytest" in found.stderr.lower():
        raise MissingDependencyError(
            f"no test was run: {said}", "run it from a checkout, with the extra dev installed"
        )
    if found.returncode:
        raise CheckFailed(f"{said.strip('= ')}: {'; '.join(failed[:3])}", measured)
    return measured
