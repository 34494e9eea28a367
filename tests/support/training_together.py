"""Recipes trained by one process or several, in float64, so that two sums of another order agree to the last digits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor

from compactmtl.config import resolve_recipe
from compactmtl.data import images
from compactmtl.errors import CompactError
from compactmtl.train import Run, train
from compactmtl.train.session import Session
from tests.support.processes import in_processes

RECIPE = Path(__file__).parents[1] / "train" / "together.yaml"
LASSO = "controller: {mac_reduction: 0.3, end: 0.6, every: 1, min_channels: 4}"
SELECTIVE = "selective: {mac_reduction: 0.4, start: 0.1, end: 0.6, every: 1, min_channels: 4}"
# Of each case a recipe's sections as overrides.
CASES: Mapping[str, tuple[str, ...]] = {
    "plain": ("train.clip=1.0",),
    "frozen": ("train.batch_norm=frozen", "train.optimizer={name: sgd, lr: 0.01}"),
    "alternating": ("overparam={kind: svd, training: alternating}",),
    "branches": ("overparam={kind: repvgg}", "train.optimizer={name: sgd, lr: 0.01}"),
    "lasso": (f"sparsity={{warmup: 0, shrink_every: 1, {LASSO}}}",),
    "selective": (f"sparsity={{shrink_every: 1, norm_batches: 2, {SELECTIVE}}}", "train.epochs=3"),
    "dgr": ("regularization={dgr: {strength: 0.1, dummies: 2}}",),
    "slopes": ("regularization={input_gradient: {strength: 0.1}, weight_gradient: {strength: 0.1}}",),
    "sam": ("regularization={sam: {rho: 0.05}}",),
    "pseudo": ("regularization={pta: {decoders: 2, control: perturb}}",),
    "upgrad": ("balancing={name: upgrad}",),
    "mgda at features": ("balancing={name: mgda, at: features}",),
    "pcgrad": ("balancing={name: pcgrad}", "train.competition=2"),
    "uncertainty": ("balancing={name: uncertainty}",),
    "dwa": ("balancing={name: dwa}", "train.epochs=3"),
    "famo": ("balancing={name: famo}",),
    "accumulated": ("train.accumulate=2", "train.batch_norm=frozen", "balancing={name: upgrad}"),
    "computed again": ("train.checkpoint_activations=true",),
    "distillation": (
        "distillation={teacher: self, start: 0.3, features: {teacher: self}}",
        "balancing={name: upgrad}",
        "train.ema={decay: 0.9}",
    ),
}
FOUR = ("plain", "selective")  # of four processes
INTERRUPTED = "selective"  # after this many steps:
STEPS = 4
DROPOUT = "tasks.segmentation.head.dropout=0.2"


@contextmanager
def float64() -> Iterator[None]:
    """Networks are built in float64 and given images in it."""
    normalize = images.normalize

    def doubled(*given: Any) -> Tensor:
        return normalize(*given).double()

    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch("compactmtl.data.loader.normalize", doubled):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def trained(case: str, folder: Path, *overrides: str, resume: bool = False) -> Run:
    resolved = resolve_recipe(RECIPE, [*CASES[case], *overrides])
    return train(resolved, folder, console=Console(quiet=True), resume=resume)


@contextmanager
def asked_to_stop(after: int, here: bool) -> Iterator[None]:
    """SIGTERM to this process after a step, where it is `here`."""
    update = Session.update

    def signalling(self: Session, loss: Tensor) -> None:
        update(self, loss)
        if here and self.position.step == after:
            signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(Session, "update", signalling):
        yield


def failure_of(work: Callable[[], object]) -> list[Any]:
    try:
        work()
    except CompactError as error:
        return [type(error).__name__, error.exit_code, error.message]
    return []


def train_two(rank: int, folder: Path) -> dict[str, Any]:
    """Every case; one that process 1 is asked to stop and that goes on; what is refused."""
    found: dict[str, Any] = {}
    with float64():
        for case in CASES:
            trained(case, folder / case)
        trained(INTERRUPTED, folder / "whole", DROPOUT)
        path = folder / "interrupted"
        with asked_to_stop(STEPS, rank == 1):
            found["interrupted"] = failure_of(lambda: trained(INTERRUPTED, path, DROPOUT))
        trained(INTERRUPTED, path, DROPOUT, resume=True)
        with asked_to_stop(STEPS, rank == 0):
            failure_of(lambda: trained(INTERRUPTED, folder / "left to one"))
    refused = {
        "compiled": ("train.compile=eager",),
        "latency": ("sparsity={selective: {latency: {target: onnxruntime-cpu, speedup: 1.2}}}",),
    }
    for name, overrides in refused.items():
        found[name] = failure_of(lambda o=overrides: trained("plain", folder / "refused", *o))  # type: ignore[misc]
    found["taken"] = failure_of(lambda: trained("plain", folder / "plain"))
    found["drifted"] = failure_of(lambda: drifted(rank, folder / "drifted"))
    return found


def drifted(rank: int, folder: Path) -> None:
    """A run of which one process's weights change."""
    update = Session.update

    def changing(self: Session, loss: Tensor) -> None:
        update(self, loss)
        if rank == 1 and self.position.step == 2:
            weight = next(self.model.parameters()).detach()
            weight.flatten()[0] += 1e-6

    with mock.patch.object(Session, "update", changing):
        trained("plain", folder)


def train_four(rank: int, folder: Path) -> dict[str, Any]:
    with float64():
        for case in FOUR:
            trained(case, folder / case)
    return {"few": failure_of(lambda: trained("plain", folder / "refused", "data.batch_size=5"))}


def runs_of(count: int, folder: Path) -> tuple[Path, list[Any]]:
    """The folder of all runs of `count` processes, and what each found."""
    folder.mkdir()
    return folder, in_processes(train_two if count == 2 else train_four, count, folder)
