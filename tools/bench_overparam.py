"""Time and memory of a training step in over-parameterized form, against the plain network and the naive forms.

    python tools/bench_overparam.py                              # the targets: ResNet-18 and ResNet-50
    python tools/bench_overparam.py resnet18 8 256 --steps 5 --threads 2

The forms take turns step by step in one process, so that a busy machine slows all alike; `--cpu-time` counts the
process's own CPU seconds, which a busy machine hardly changes. Memory is the peak of a process of its own that
takes two steps, over what it held before the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.overparam import factorized_layers, overparameterize

TARGETS = [("resnet18", 8, 256, 1.5), ("resnet50", 16, 256, 1.3)]  # network, batch, pixels, times plain
FORMS = {
    "plain": "the network as it is deployed",
    "ours": "svd at full rank, each layer evaluated the cheaper way",
    "contracted": "every weight contracted, then one convolution (naive)",
    "sequence": "two convolutions and a diagonal for every layer (naive)",
}
CLASSES = 10


@dataclass(frozen=True)
class Row:
    """One form's median seconds of a training step and of evaluation, ratios paired with plain's, and peak MiB."""

    form: str
    step: float
    step_ratio: float
    eval: float
    eval_ratio: float
    memory_mib: float | None


def build(name: str, form: str) -> nn.Module:
    """A network of timm's in one of FORMS, from the same random weights."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=CLASSES)
    if form == "plain":
        return model
    trained = overparameterize(model, "svd", evaluation="auto" if form == "ours" else "contract")
    if form == "sequence":
        for layer in factorized_layers(trained).values():
            layer.evaluation = "sequence"
    return trained


class Stepper:
    """A form with its optimizer: `train` is one whole step, `evaluate` a forward pass in eval mode."""

    def __init__(self, name: str, form: str, image: Tensor) -> None:
        self.model = build(name, form).to(image.device)
        self.image = image
        self.target = torch.arange(len(image), device=image.device) % CLASSES
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def train(self) -> None:
        self.model.train()
        loss = F.cross_entropy(self.model(self.image), self.target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def evaluate(self) -> None:
        with torch.inference_mode():
            self.model(self.image)


def timed(call: Callable[[], None], clock: Callable[[], float], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def compare(name: str, image: Tensor, forms: list[str], steps: int, clock: Callable[[], float]) -> list[Row]:
    """Paired times of the forms, which take turns."""
    steppers = {form: Stepper(name, form, image) for form in forms}
    trained: dict[str, list[float]] = {form: [] for form in forms}
    evaluated: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(steps + 1):
        for form, stepper in steppers.items():
            seconds = timed(stepper.train, clock, image.device)
            if turn:  # the first is for warming up
                trained[form].append(seconds)
    for stepper in steppers.values():
        stepper.model.eval()
    for turn in range(2 * steps + 1):
        for form, stepper in steppers.items():
            seconds = timed(stepper.evaluate, clock, image.device)
            if turn:
                evaluated[form].append(seconds)
    return [
        Row(
            form,
            statistics.median(trained[form]),
            _ratio(trained[form], trained["plain"]),
            statistics.median(evaluated[form]),
            _ratio(evaluated[form], evaluated["plain"]),
            None,
        )
        for form in forms
    ]


def _ratio(mine: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def peak_memory(name: str, form: str, image: Tensor) -> float:
    """MiB that two training steps add to what this process held."""
    if image.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(image.device)
        before = torch.cuda.memory_allocated(image.device)
    else:
        before = _highest()
    stepper = Stepper(name, form, image)
    for _ in range(2):
        stepper.train()
    if image.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(image.device)
    else:
        peak = _highest()
    return (peak - before) / 2**20


def _highest() -> int:
    """Most bytes that this process has held. On Linux ru_maxrss would begin with what its parent held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def bench(name: str, batch: int, pixels: int, arguments: argparse.Namespace) -> list[Row]:
    """All forms of one network, batch and image size."""
    image = torch.randn(batch, 3, pixels, pixels, device=arguments.device)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    rows = compare(name, image, arguments.forms, arguments.steps, clock)
    if arguments.no_memory:
        return rows
    found = []
    for row in rows:
        words = [sys.executable, __file__, name, str(batch), str(pixels), "--memory-of", row.form]
        words += ["--device", arguments.device, "--threads", str(arguments.threads)]
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found.append(Row(**{**asdict(row), "memory_mib": float(output)}))
    return found


def table(name: str, batch: int, pixels: int, rows: list[Row]) -> str:
    """Rows as Markdown."""
    lines = [
        f"{name}, {batch}×3×{pixels}×{pixels}",
        "",
        "| form | step, s | × plain | eval, s | × plain | peak, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        memory = "—" if row.memory_mib is None else f"{row.memory_mib:.0f}"
        lines.append(
            f"| {row.form} | {row.step:.3f} | {row.step_ratio:.2f} | {row.eval:.3f} | {row.eval_ratio:.2f} | {memory} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", nargs="?", help="a timm model; the targets by default")
    parser.add_argument("batch", nargs="?", type=int, default=8)
    parser.add_argument("pixels", nargs="?", type=int, default=256)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's CPU seconds")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--memory-of", choices=list(FORMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        shape = (arguments.batch, 3, arguments.pixels, arguments.pixels)
        print(
            peak_memory(arguments.network, arguments.memory_of, torch.randn(shape, device=arguments.device))
        )
        return 0
    arguments.forms = list(dict.fromkeys(["plain", *arguments.forms]))
    own = [(arguments.network, arguments.batch, arguments.pixels, None)]
    missed, written = [], []
    for name, batch, pixels, bound in own if arguments.network else TARGETS:
        rows = bench(name, batch, pixels, arguments)
        print(f"{table(name, batch, pixels, rows)}\n", flush=True)
        written.append({"network": name, "batch": batch, "pixels": pixels, "rows": [asdict(r) for r in rows]})
        ours = next((row for row in rows if row.form == "ours"), None)
        if bound is not None and ours is not None and ours.step_ratio > bound:
            missed.append(f"{name}: a step takes {ours.step_ratio:.2f} × plain, the target is {bound}")
    if arguments.json:
        arguments.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print("\n".join(missed), end="\n" if missed else "")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
