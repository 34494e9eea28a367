"""Step time and memory of every balancer and of dummy gradient norms: three tasks on one ResNet.

python tools/bench_balancing.py                                    # ResNet-18 and ResNet-50, everything
python tools/bench_balancing.py --encoder resnet50 --only dgr      # what has "dgr" in its name
python tools/bench_balancing.py --device cuda --json balancing.json

A step is forward, backward and Adam on a fixed batch (by default 64 images of 64×64) with heads of one hidden layer of
64 features for 7, 2 and 5 classes. Each variant takes turns with the vanilla step; a ratio is the median over the
rounds of variant / vanilla, of CPU seconds (which other processes disturb little) or, on a GPU, of seconds. Memory is
the most that tensors take during one step beyond what lives before it. `dgr two-pass` is how the authors' code works:
a second pass of the encoder for the perturbed dummies, which here are evaluated one by one as there.

Exits 1 where `dgr exact` costs more than 1.15× a vanilla step of ResNet-50.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler import profile

from compactmtl.backends.machine import cpu_name, load_average
from compactmtl.balancing import (
    NAMES,
    Balancer,
    DummyGradientNorm,
    GradientBalancer,
    balanced_backward,
    balancer,
)
from compactmtl.balancing.dummies import random_head, template_of
from compactmtl.config.recipe import HeadConfig
from compactmtl.errors import CompactError
from compactmtl.models import LinearHead

CLASSES = {"age": 7, "gender": 2, "ethnicity": 5}
DUMMIES = 3
STRENGTH = 1e-6
EPSILON = 1e-4
MOST = 1.15  # of a vanilla step of ResNet-50 that exact dummy gradient norms may cost

Step = Callable[[], None]
At = Literal["features", "shared_parameters"]


@dataclass(frozen=True)
class Result:
    """One variant on one encoder: seconds and bytes of a step, and both as ratios to the vanilla step's."""

    encoder: str
    variant: str
    seconds: float
    ratio: float
    bytes: int
    memory_ratio: float


class Setup:
    """A network, a batch, and steps on them."""

    def __init__(self, encoder: str, batch: int, size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.encoder: nn.Module = timm.create_model(encoder, num_classes=0).to(device).train()
        width: int = self.encoder.num_features  # type: ignore[assignment]
        self.heads = nn.ModuleDict(
            {task: LinearHead(width, count, HeadConfig(width=64)) for task, count in CLASSES.items()}
        ).to(device)
        self.image = torch.randn(batch, 3, size, size, device=device)
        self.targets = {task: torch.randint(0, n, (batch,), device=device) for task, n in CLASSES.items()}
        self.optimizer = torch.optim.Adam(
            [*self.encoder.parameters(), *self.heads.parameters()], 1e-5, fused=True
        )

    def losses(self, features: Tensor) -> dict[str, Tensor]:
        return {
            task: F.cross_entropy(head(features), self.targets[task]) for task, head in self.heads.items()
        }

    def step(self, method: Balancer, dgr: DummyGradientNorm | None = None) -> Step:
        """A step by a balancer, with dummy gradient norms where they are given."""

        def run() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            features = self.encoder(self.image)
            losses = self.losses(features)
            penalty = None if dgr is None else STRENGTH * dgr(features, self.targets)
            if isinstance(method, GradientBalancer):
                own = {task: head.parameters() for task, head in self.heads.items()}
                balanced_backward(method, losses, [features], self.encoder.parameters(), own, penalty=penalty)
            else:
                total = method.combine(losses)
                (total if penalty is None else total + penalty).backward()
            self.optimizer.step()
            if method.relooks:
                with torch.no_grad():
                    method.after_step(self.losses(self.encoder(self.image)))

        return run

    def dgr(self, **options: str) -> DummyGradientNorm:
        losses = dict.fromkeys(CLASSES, F.cross_entropy)
        found = DummyGradientNorm(dict(self.heads.items()), losses, dummies=DUMMIES, **options)  # type: ignore[arg-type]
        return found.to(self.device)

    def two_pass(self) -> Step:
        """The finite difference of the authors' code: one more pass of the encoder with perturbed dummies."""
        dummies = {
            task: [template_of(random_head(head, task, n, 0)).requires_grad_(True) for n in range(DUMMIES)]
            for task, head in self.heads.items()
        }

        def dummy_losses(features: Tensor) -> list[Tensor]:
            return [F.cross_entropy(d(features), self.targets[t]) for t, ds in dummies.items() for d in ds]

        def run() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            features = self.encoder(self.image)
            losses, first = self.losses(features), dummy_losses(features)
            everyone = [dummy for ds in dummies.values() for dummy in ds]
            moves = []
            for dummy, loss in zip(everyone, first, strict=True):
                slopes = torch.autograd.grad(loss, list(dummy.parameters()), retain_graph=True)
                norm = torch.stack([slope.norm() for slope in slopes]).norm()
                moves.append([EPSILON * slope / norm for slope in slopes])
            for sign in (1, -1):
                with torch.no_grad():
                    for dummy, move in zip(everyone, moves, strict=True):
                        for parameter, part in zip(dummy.parameters(), move, strict=True):
                            # the graph of the first pass needs the weights as they were
                            parameter.data = parameter.data + sign * part
                if sign == 1:
                    second = dummy_losses(self.encoder(self.image))
            rises = torch.stack([(b - a) / EPSILON for a, b in zip(first, second, strict=True)])
            total = torch.stack(list(losses.values())).sum() + STRENGTH / DUMMIES * rises.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

        return run


def variants(setup: Setup, only: Sequence[str]) -> dict[str, Step | str]:
    """Every variant's step by name, or why it cannot be measured here."""

    def named(name: str) -> bool:
        return not only or any(word in name for word in only)

    found: dict[str, Step | str] = {}
    for name in (name for name in NAMES if name != "equal"):
        first = make(lambda name=name: balancer(name, list(CLASSES)))  # type: ignore[misc]
        places: tuple[At | None, ...] = (None,)
        if isinstance(first, GradientBalancer):
            places = ("features", "shared_parameters")
        for at in places:
            label = name if at is None else f"{name}, {at.replace('_', ' ')}"
            if not named(label):
                continue
            options = {"beta": 0.0} if name == "db_mtl" and at == "features" else {}
            made = make(lambda: balancer(name, list(CLASSES), at=at, options=options))  # noqa: B023
            found[label] = made if isinstance(made, str) else setup.step(made.to(setup.device))
    equal = balancer("equal", list(CLASSES))
    own: Mapping[str, Callable[[], Step]] = {
        "dgr exact": lambda: setup.step(equal, setup.dgr()),
        "dgr finite difference": lambda: setup.step(equal, setup.dgr(mode="finite_difference")),
        "dgr two-pass": setup.two_pass,
        "dgr exact + mgda, features": lambda: setup.step(
            balancer("mgda", list(CLASSES), at="features"), setup.dgr()
        ),
        "dgr exact + mgda, shared parameters": lambda: setup.step(
            balancer("mgda", list(CLASSES)), setup.dgr()
        ),
    }
    return found | {name: build() for name, build in own.items() if named(name)}


def make(build: Callable[[], Balancer]) -> Balancer | str:
    """A balancer, or why there is none, such as a missing solver."""
    try:
        return build()
    except CompactError as error:
        return error.message


def measure(encoder: str, args: argparse.Namespace, device: torch.device) -> list[Result]:
    """All variants in turns with the vanilla step."""
    setup = Setup(encoder, args.batch, args.size, device)
    vanilla = setup.step(balancer("equal", list(CLASSES)))
    for _ in range(2):
        vanilla()
    base = 0 if args.no_memory else memory(setup, vanilla)
    results = []
    plain: list[float] = []
    for name, step in variants(setup, args.only).items():
        if isinstance(step, str):
            print(f"not measured: {name}: {step}", file=sys.stderr)
            continue
        step()
        used = 0 if args.no_memory else memory(setup, step)
        pairs = [(seconds(vanilla, device), seconds(step, device)) for _ in range(args.rounds)]
        plain += [first for first, _ in pairs]
        ratio = statistics.median(second / first for first, second in pairs)
        results.append(
            Result(
                encoder, name, statistics.median(b for _, b in pairs), ratio, used, used / base if base else 0
            )
        )
        print(f"{encoder} {name}: {ratio:.2f}×", file=sys.stderr, flush=True)
    return [Result(encoder, "vanilla", statistics.median(plain or [0.0]), 1.0, base, 1.0), *results]


def seconds(step: Step, device: torch.device) -> float:
    """CPU seconds of one step, or seconds where a GPU works."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        step()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    step()
    return time.process_time() - start


def memory(setup: Setup, step: Step) -> int:
    """The most that tensors take in one step beyond what was there before: activations, gradients and buffers."""
    device = setup.device
    setup.optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as profiled:
        step()
    events = profiled.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak


def table(results: Sequence[Result]) -> str:
    """The results in Markdown."""
    lines = [
        "| encoder | variant | step, s | × vanilla | memory, MiB | × vanilla |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for one in results:
        used = f"{one.bytes / 2**20:.0f} | {one.memory_ratio:.2f}" if one.bytes else "— | —"
        lines.append(f"| {one.encoder} | {one.variant} | {one.seconds:.4g} | {one.ratio:.2f} | {used} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encoder", nargs="+", default=["resnet18", "resnet50"], metavar="NAME")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="variants with one of these words"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default: 64)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    results = [one for encoder in args.encoder for one in measure(encoder, args, device)]
    print(table(results))
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()}, {args.threads} threads"
    )
    print(
        f"\n{where}, torch {torch.__version__}; load {load_average()}; batch {args.batch}, {args.size}×{args.size}"
    )
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n", encoding="utf-8")
    slow = [
        one
        for one in results
        if one.encoder == "resnet50" and one.variant == "dgr exact" and one.ratio > MOST
    ]
    for one in slow:
        print(f"dgr exact costs {one.ratio:.2f}× a vanilla step, more than {MOST}×", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
