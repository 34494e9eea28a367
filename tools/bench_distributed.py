"""What do two processes cost and gain? Steps of a ResNet with our collectives against DistributedDataParallel, and alone.

python -m tools.bench_distributed
python -m tools.bench_distributed --network resnet10t --size 64 --batch 64 --rounds 40 --json distributed.json

Each of two processes has one thread and half of the batch; one process alone has two threads and all of it. A step is
forward, backward and SGD. In the two processes these steps take turns, so that a busy machine slows all alike:

- ddp: torch's DistributedDataParallel, batch norm by each process's part;
- averaged: gradients by compactmtl's buckets, batch norm by each process's part;
- whole batch: as `compactmtl train` does it, with batch norm and the loss of the whole batch and an agreement on
  whether to stop.

Exits 1 where a step of `averaged` takes more than `--most` (1.05) times one of `ddp`, by the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from compactmtl.backends.machine import cpu_name, load_average
from compactmtl.distributed.agree import totals
from compactmtl.distributed.processes import averaging, world
from compactmtl.distributed.sums import joined, mean

CLASSES = 10
WARM = 3  # rounds that are not counted


def steps(given: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """One step each of a way to train, of networks that begin alike."""
    torch.manual_seed(0)
    network = timm.create_model(given.network, num_classes=CLASSES)
    count = given.batch // world()
    image = torch.randn(count, 3, given.size, given.size)
    labels = torch.randint(0, CLASSES, (count,))
    found: dict[str, Callable[[], None]] = {}

    def add(name: str, model: nn.Module, *, whole: bool) -> None:
        parameters = list(model.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.01)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with joined() if whole else nullcontext():
                loss: Tensor = mean(F.cross_entropy(model(image), labels, reduction="none"))
            with nullcontext() if name == "ddp" else averaging(parameters):
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if whole:
                totals([0.0, count])

        found[name] = step

    if world() == 1:
        add("alone", network, whole=False)
        return found
    add("ddp", DistributedDataParallel(copy.deepcopy(network)), whole=False)
    add("averaged", copy.deepcopy(network), whole=False)
    add("whole batch", copy.deepcopy(network), whole=True)
    return found


def work(rank: int, count: int, port: int, given: argparse.Namespace, folder: str) -> None:
    """The seconds of each step in each round, written by the first process."""
    torch.set_num_threads(2 // count)
    if count > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    seconds: dict[str, list[float]] = {}
    ways = steps(given)
    for number in range(WARM + given.rounds):
        for name, step in ways.items():
            totals([0.0])  # all begin together
            start = time.perf_counter()
            step()
            totals([0.0])
            if number >= WARM:
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    if rank == 0:
        (Path(folder) / f"{count}.json").write_text(json.dumps(seconds), "utf-8")
    if count > 1:
        dist.destroy_process_group()


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each way, the medians of ratios within rounds, and the machine."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            spawn(work, (count, port, given, folder), nprocs=count)  # type: ignore[no-untyped-call]
            seconds |= json.loads((Path(folder) / f"{count}.json").read_text("utf-8"))
    ratios = {
        name: statistics.median(own / other for own, other in zip(seconds[name], seconds["ddp"], strict=True))
        for name in ("averaged", "whole batch")
    }
    return {
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "over_ddp": ratios,
        "processor": cpu_name(),
        "load": load_average(),
        "settings": {key: getattr(given, key) for key in ("network", "size", "batch", "rounds")},
    }


def main() -> int:
    """Measure, print, and say whether the bound holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="images of all processes together; even")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--most", type=float, default=1.05)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measured(given)
    print(
        f"{given.network}, {given.batch} images of {given.size}x{given.size}; {found['processor']}, load {found['load']}"
    )
    for name, value in found["milliseconds"].items():
        print(f"{name:<12} {value:8.1f} ms a step")
    for name, value in found["over_ddp"].items():
        print(f"{name:<12} {value:8.3f} times ddp")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return int(found["over_ddp"]["averaged"] > given.most)


if __name__ == "__main__":
    sys.exit(main())
