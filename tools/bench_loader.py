"""Does loading keep up? Images a second of a recipe's loader alone, against a ResNet-18 training step at its size.

python tools/bench_loader.py --root DATA                     # utkface/dense and camvid/dense
python tools/bench_loader.py camvid/small --root DATA --workers 2 --json loader.json

The loader decodes into its cache, augments, collates and normalizes; the first pass, which fills the cache, is told
apart. The step is forward, backward and update of timm's ResNet-18 with a linear head on a fixed batch, the cheapest
that a ResNet-18 can be; the recipe's own step is shown beside it. Loader and steps take turns, so that a busy machine
slows all alike. Exits 1 where a loader delivers less than `--times` (3) times what the ResNet-18 step consumes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from compactmtl.backends.machine import cpu_name, load_average
from compactmtl.config import Recipe, load_recipe
from compactmtl.data.base import Batch
from compactmtl.data.loader import Loader
from compactmtl.errors import CompactError
from compactmtl.train.build import build_session
from compactmtl.train.session import Session

RECIPES = ("utkface/dense", "camvid/dense")


@dataclass(frozen=True)
class Result:
    """Images a second, medians over the rounds."""

    recipe: str
    size: tuple[int, int]
    batch: int
    workers: int
    first_pass: float  # filling the cache, decoding included
    loader: float
    resnet18_step: float
    own_step: float

    @property
    def times(self) -> float:
        """Images the loader delivers for each that a ResNet-18 step consumes."""
        return self.loader / self.resnet18_step


def measure(name: str, recipe: Recipe, rounds: int, batches: int) -> Result:
    """Time loader, ResNet-18 step and the recipe's own step in `rounds` turns of up to `batches` batches each."""
    start = time.perf_counter()
    session = build_session(recipe)  # fills a cache in memory
    loader = session.train_loader
    stream = endless(loader)
    images = sum(len(batch["image"]) for batch in islice(stream, len(loader)))
    first = images / (time.perf_counter() - start)
    fixed = next(stream)
    step = resnet18_step(fixed["image"])
    own = own_step(session, fixed)
    rates: dict[str, list[float]] = {"loader": [], "resnet18": [], "own": []}
    for _ in range(rounds):
        rates["loader"].append(rate(lambda: len(next(stream)["image"]), batches))
        rates["resnet18"].append(rate(step, max(2, batches // 8)))
        rates["own"].append(rate(own, max(2, batches // 8)))
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    return Result(
        name,
        recipe.data.size,
        recipe.data.batch_size,
        recipe.data.workers,
        first,
        medians["loader"],
        medians["resnet18"],
        medians["own"],
    )


def endless(loader: Loader) -> Iterator[Batch]:
    """The training batches of epoch after epoch."""
    epoch = 1
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def rate(run: Callable[[], int], count: int) -> float:
    """Images a second over `count` calls, each of which says how many images it took."""
    start = time.perf_counter()
    images = sum(run() for _ in range(count))
    return images / (time.perf_counter() - start)


def resnet18_step(image: Tensor) -> Callable[[], int]:
    """A training step of timm's ResNet-18 with a linear head of ten classes on one batch (B, 3, H, W)."""
    model: nn.Module = timm.create_model("resnet18", num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters())
    labels = torch.arange(len(image)) % 10

    def step() -> int:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(image), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return len(image)

    step()
    return step


def own_step(session: Session, batch: Batch) -> Callable[[], int]:
    """A training step of the recipe itself."""

    def step() -> int:
        _, loss = session.forward(batch)
        session.update(loss)
        return len(batch["image"])

    step()
    return step


def table(results: list[Result]) -> str:
    """The results in Markdown."""
    lines = [
        "| recipe | size | batch | workers | first pass, images/s | loader, images/s | ResNet-18 step, images/s | own step, images/s | loader / ResNet-18 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in results:
        lines.append(
            f"| {one.recipe} | {one.size[0]}×{one.size[1]} | {one.batch} | {one.workers} | {one.first_pass:.0f} | "
            f"{one.loader:.0f} | {one.resnet18_step:.1f} | {one.own_step:.1f} | {one.times:.1f}× |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--root", required=True, help="data.root of every recipe")
    parser.add_argument("--workers", type=int, help="data.workers (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help="loader batches in a round (default: 40)")
    parser.add_argument("--times", type=float, default=3.0, help="least ratio (default: 3)")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    overrides = [f"data.root={args.root}", f"train.threads={args.threads}"]
    if args.workers is not None:
        overrides.append(f"data.workers={args.workers}")
    try:
        results = [
            measure(name, load_recipe(name, overrides), args.rounds, args.batches) for name in args.recipes
        ]
    except CompactError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    print(table(results))
    print(f"\n{cpu_name()}, {args.threads} threads, torch {torch.__version__}; load {load_average()}")
    if args.json is not None:
        rows = [asdict(one) | {"times": one.times} for one in results]
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    slow = [one.recipe for one in results if one.times < args.times]
    if slow:
        print(f"below {args.times:g}×: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
