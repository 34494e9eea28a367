"""Surgery of a network on an idle machine and beside a training, by how OpenMP's idle threads wait.

python tools/bench_busy.py [--model efficientnet_lite0] [--loads 1] [--repeats 3]

Each measurement is a process of its own: one `compact` of a timm network of which half of the channels are zero, after
everything is imported. The load is a process that trains a small network without an end, with as many threads as the
machine has processors; this command starts it and ends it. Prints a table in Markdown: seconds, and seconds of
processor time, the median of the repeats.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from compactmtl.cli.main import WAITING, wait_passively

LONGEST = 600  # seconds: of one measurement, and of a load that nobody ended

WORK = """
import os, sys, time
import timm, torch
from torch import nn
from compactmtl.surgery import compact
if sys.argv[2] == "pool":
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_num_threads = lambda count: None  # surgery's own choice of one thread is what this leaves out
torch.manual_seed(0)
model = timm.create_model(sys.argv[1], num_classes=16).eval()
with torch.no_grad():
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight[::2], module.bias[::2] = 0, 0
            module.running_var.uniform_(0.5, 2)
image = torch.randn(1, 3, 64, 64)
model(image)
wall, used = time.perf_counter(), time.process_time()
compact(model, (image,))
print(time.perf_counter() - wall, time.process_time() - used)
"""

LOAD = """
import os, sys, time
import torch
from torch import nn
torch.set_num_threads(os.cpu_count() or 1)
net = nn.Sequential(*(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()) for _ in range(4)))
end = time.monotonic() + float(sys.argv[1])
x = torch.randn(8, 32, 64, 64)
print("ready", flush=True)
while time.monotonic() < end:
    net(x).square().mean().backward()
"""

# How idle threads wait, and how many threads surgery takes.
WAYS = {
    "a thread a processor, spinning": ("pool", {}),
    "a thread a processor, passive": ("pool", wait_passively({})),
    "one thread (a library's)": ("one", {}),
    "one thread, passive (the command's)": ("one", wait_passively({})),
}


@contextmanager
def load(count: int) -> Iterator[None]:
    """`count` trainings beside what runs inside; they end with it."""
    command = [sys.executable, "-c", LOAD, str(LONGEST)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=plain()) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def plain() -> dict[str, str]:
    """The environment as most users have it."""
    return {key: value for key, value in os.environ.items() if key not in (*WAITING, "OMP_NUM_THREADS")}


def measure(model: str, threads: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and processor seconds of one run."""
    command = [sys.executable, "-c", WORK, model, threads]
    done = subprocess.run(
        command,
        env=plain() | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    wall, used = map(float, done.stdout.split())
    return wall, used


def main() -> None:
    """Measure every way, idle and beside the load, in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--loads", type=int, default=1, help="trainings at once (default: 1)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for count in (0, args.loads):
        with load(count):
            for _ in range(args.repeats):
                for name, (threads, environment) in WAYS.items():
                    found.setdefault((name, count), []).append(measure(args.model, threads, environment))
    print(
        f"{args.model}, {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}, {time.ctime()}\n"
    )
    print("| threads of surgery | idle, s | processor, s | beside a training, s | processor, s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in WAYS:
        cells = [
            f"{statistics.median(values):.1f}"
            for count in (0, args.loads)
            for values in zip(*found[name, count], strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
