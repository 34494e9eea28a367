"""Surgery on a zoo of networks and masks: exactness, how much goes, how much could go, beside Torch-Pruning.

    python -m tools.bench_surgery run --out surgery.jsonl        # goes on where it stopped
    python -m tools.bench_surgery run --brief --foreign          # shares alone: no gather, no latency, no Torch-Pruning
    python -m tools.bench_surgery run --out one.jsonl --part 1 2 # the first half, beside the second in another shell
    python -m tools.bench_surgery table surgery.jsonl            # Markdown for docs/results/surgery.md

The first line of the JSONL file says which version of the project, on what, each further line is one network under one
pattern of `surgery_zoo`, with random weights. A file goes on with the version alone that it began with.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compactmtl.backends.machine import cpu_name
from compactmtl.graph import cost
from compactmtl.graph.copies import copy_model
from compactmtl.surgery import compact
from compactmtl.surgery.contraction import plain_layer
from tools.surgery_table import VARIES, read, table
from tools.surgery_zoo import (
    PATTERNS,
    ZOO,
    NotMasked,
    build,
    calibrate,
    carriers,
    limited,
    mask,
    torch_pruning_groups,
)
from tools.surgery_zoo_foreign import FOREIGN, PACKAGES

ROUNDING = 1e-5  # in float32, above which rounding may play a part


def _leaves(output: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def varies(model: nn.Module, image: tuple[Tensor, ...]) -> float:
    """How much the output moves with the input: largest spread over inputs as a share of the largest value."""
    batch = torch.randn(4, *image[0].shape[1:])
    with torch.no_grad():
        outputs = _leaves(model(batch))
    return max(float((o.amax(0) - o.amin(0)).max() / o.abs().max().clamp_min(1e-12)) for o in outputs)


def errors(one: nn.Module, other: nn.Module, image: tuple[Tensor, ...]) -> dict[str, float]:
    """`float32`, the largest relative error, and `error`, the one that counts.

    On fresh inputs at two batch sizes and, where the network allows, two resolutions. In float32 a network's own rounding
    alone can come to 1e-4. Where it may play a part `error` is taken on the same inputs in float64. What is not finite
    in one of them alone, or of another shape, is an infinite error. Raises what `other` raises on an input that `one`
    takes, and ValueError where `one` takes none.
    """
    _, channels, height, width = image[0].shape
    shapes = (
        (1, channels, height, width),
        (3, channels, height, width),
        (2, channels, height + 32, width + 32),
    )
    batches = [batch for batch in map(torch.randn, shapes) if _takes(one, batch)]
    if not batches:
        raise ValueError("the network takes none of the inputs that it is judged on")
    found = max(error(one, other, batch) for batch in batches)
    if found <= ROUNDING:
        return {"float32": found, "error": found}
    double = [copy_model(model).double() for model in (one, other)]
    exact = max(error(double[0], double[1], batch.double()) for batch in batches)
    return {"float32": found, "error": exact}


def _takes(model: nn.Module, batch: Tensor) -> bool:
    """Whether the network runs on this size at all: some are built for one."""
    try:
        with torch.no_grad():
            model(batch)
    except Exception:
        return False
    return True


def error(one: nn.Module, other: nn.Module, batch: Tensor) -> float:
    """Largest difference of any output as a share of its largest finite value; infinite where they cannot be compared."""
    with torch.no_grad():
        expected, found = _leaves(one(batch)), _leaves(other(batch))
    if [value.shape for value in expected] != [value.shape for value in found] or not expected:
        return math.inf
    return max(_difference(a, b) for a, b in zip(expected, found, strict=True))


def _difference(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    finite = a.isfinite() & b.isfinite()
    if not bool((same | finite).all()) or not bool(finite.any()):
        return math.inf
    scale = float(a[finite].abs().max().clamp_min(1e-12))
    return float(torch.where(same, 0.0, (a - b).abs()).max()) / scale


@dataclass
class _Seen:
    """What was seen of one layer: which entries of its input and output move, which outputs get a gradient."""

    reads: Tensor
    writes: Tensor
    gradient: Tensor
    positions: float = 0.0  # at which the kernel is applied, for one image


def _layers(model: nn.Module) -> list[Any]:
    kinds = (_ConvNd, nn.Linear)
    return [m for m in model.modules() if isinstance(m, kinds) and not getattr(m, "transposed", False)]


def _channel_dim(module: nn.Module, value: Tensor) -> int:
    return 1 if isinstance(module, _ConvNd) else value.ndim - 1


def layer_macs(model: nn.Module, image: tuple[Tensor, ...]) -> float:
    """MACs of the convolutions and linear layers that are called as modules, for the image."""
    counted, layers = cost(model, image).layers, set(_layers(model))
    return float(sum(counted[name].macs for name, module in model.named_modules() if module in layers))


def bound(model: nn.Module, image: tuple[Tensor, ...]) -> float:
    """Share of the MACs left when every convolution and linear drops what is constant, unread or without gradient."""
    seen: dict[Any, _Seen] = {}
    size = int(image[0].shape[-1])
    batch = torch.randn(
        16 if size < 160 else 6, *image[0].shape[1:]
    )  # few inputs leave channels at zero by chance

    def watch(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dim = _channel_dim(module, output)
        moves = []
        for value in (inputs[0], output):
            flat = value.detach().movedim(dim, 0).flatten(1)
            moves.append((flat.amax(1) - flat.amin(1)) > 1e-6 * flat.abs().amax(1))
        none = torch.zeros_like(moves[1])
        record = seen.setdefault(module, _Seen(torch.zeros_like(moves[0]), none, none.clone()))
        record.reads, record.writes = record.reads | moves[0], record.writes | moves[1]
        record.positions += output.numel() / output.shape[dim] / len(batch)

        def arrive(gradient: Tensor) -> None:
            record.gradient = record.gradient | (gradient.movedim(dim, 0).flatten(1) != 0).any(1)

        if output.requires_grad:
            output.register_hook(arrive)  # type: ignore[no-untyped-call]

    handles = [layer.register_forward_hook(watch) for layer in _layers(model)]
    outputs = _leaves(model(batch))
    sum((o * torch.randn_like(o)).sum() for o in outputs).backward()  # type: ignore[union-attr]
    model.zero_grad(set_to_none=True)
    for handle in handles:
        handle.remove()
    full = left = 0.0
    for module, record in seen.items():
        # What a layer that computes its weight at every call reads is decided by the weight that it uses.
        plain: Any = plain_layer(module) if type(module) not in (nn.Conv2d, nn.Linear) else module
        weight: Tensor = (plain if plain is not None else module).weight.detach()
        groups = int(getattr(module, "groups", 1))
        each = record.positions * float(np.prod(weight.shape[2:]))
        rows = (record.writes & record.gradient).reshape(groups, -1).sum(1)
        nonzero = (weight != 0).flatten(2).any(2) if weight.ndim > 2 else weight != 0
        read = nonzero.reshape(groups, -1, nonzero.shape[1]).any(1)
        columns = (record.reads.reshape(groups, -1) & read).sum(1)
        full += each * weight.shape[0] * weight.shape[1]
        left += each * float((rows * columns).sum())
    return left / full


def by_torch_pruning(model: nn.Module, image: tuple[Tensor, ...]) -> nn.Module:
    """What Torch-Pruning removes when told to drop every channel whose writers are all zero."""
    small = copy_model(model)
    names = {module: name for name, module in small.named_modules()}
    chosen: list[tuple[str, list[int]]] = []
    for group in torch_pruning_groups(small, image):
        size = len(group[0][1])
        dead = torch.ones(size, dtype=torch.bool)
        for tensors, indices in carriers(group):
            if len(indices) != size:
                dead[:] = False
                break
            for value, dim in tensors:
                rows = value.detach().movedim(dim, 0)[indices].reshape(size, -1)
                dead &= (rows == 0).all(1)
        if dead.any() and not dead.all():
            chosen.append((names[group[0][0].target.module], torch.nonzero(dead).flatten().tolist()))
    try:
        return _pruned(
            copy_model(small), [name for name, _ in chosen], [i for _, i in chosen], image, once=True
        )
    except Exception:
        # Some graphs do not survive a removal: trace the network anew for each.
        return _pruned(small, [name for name, _ in chosen], [i for _, i in chosen], image, once=False)


def _pruned(
    small: nn.Module, names: list[str], indices: list[list[int]], image: tuple[Tensor, ...], once: bool
) -> nn.Module:
    """Drop output channels of layers one after the other; the dependency graph is built once, or for each."""
    import torch_pruning as tp

    graph: Any = None
    for name, dead in zip(names, indices, strict=True):
        if graph is None or not once:
            with torch.enable_grad():
                graph = tp.DependencyGraph().build_dependency(small, example_inputs=image[0])
        root = small.get_submodule(name)
        handler = tp.prune_conv_out_channels if isinstance(root, _ConvNd) else tp.prune_linear_out_channels
        graph.get_pruning_group(root, handler, idxs=dead).prune()
    return small


def latency_ratio(model: nn.Module, small: nn.Module, image: tuple[Tensor, ...], rounds: int = 5) -> float:
    """Median time of `model` over that of `small`, one image each in turn, in eager mode."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(rounds):
            for own, network in zip(times, (model, small), strict=True):
                started = time.perf_counter()
                network(*image)
                own.append(time.perf_counter() - started)
    return float(np.median(times[0]) / np.median(times[1]))


def _ours(
    model: nn.Module, image: tuple[Tensor, ...], full: float, gather: bool, timed: bool = True
) -> dict[str, Any]:
    started = time.perf_counter()
    result = compact(model, image, gather=gather, join=False)  # the share is of what can be removed
    seconds = time.perf_counter() - started
    parameters = sum(p.numel() for p in model.parameters())
    return {
        **errors(model, result.model, image),
        "macs": layer_macs(result.model, image) / full,
        "parameters": sum(p.numel() for p in result.model.parameters()) / parameters,
        "not_pruned": len(result.report.not_pruned),
        "rolled_back": sum("rolled back" in reason for reason in result.report.not_pruned.values()),
        "seconds": seconds,
        **({"latency": latency_ratio(model, result.model, image)} if timed else {}),
    }


def measure(name: str, pattern: str, brief: bool = False) -> dict[str, Any]:
    """One row: ours without and with gather, and Torch-Pruning's, on the same mask; `brief`: ours without gather alone."""
    row: dict[str, Any] = {"network": name, "pattern": pattern}
    for seed in range(4):
        torch.manual_seed(seed)
        model, image = build(name)
        mask(model, image, pattern, seed)
        calibrate(model, image)
        row["varies"] = varies(model, image)
        if row["varies"] > VARIES:
            break
    full = layer_macs(model, image)
    if not math.isfinite(row["varies"]):
        raise NotMasked("the masked network's output is not finite")
    row["bound"] = bound(copy_model(model), image)
    row |= _ours(model, image, full, gather=False, timed=not brief)
    if brief:
        return row
    if pattern in ("A", "A2", "B"):
        row["gather"] = _ours(model, image, full, gather=True)
    started = time.perf_counter()
    try:
        with limited():
            other = by_torch_pruning(model, image)
        row["tp"] = {**errors(model, other, image), "macs": layer_macs(other, image) / full}
    except Exception as failure:
        row["tp"] = {"failure": f"{type(failure).__name__}: {failure}"[:200]}
    row["tp"]["seconds"] = time.perf_counter() - started
    return row


def version(brief: bool) -> dict[str, Any]:
    """What the figures are of: the commit and whether files differ from it, packages, processor, threads, and how much is
    measured."""
    git = ("git", "-C", str(Path(__file__).parent))
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
    ).stdout.strip()
    packages = {name: metadata.version(name) for name in ("torch", "timm", "torchvision", "torch_pruning")}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # a network of it is a row that says so
            packages[name] = metadata.version(name)
    return {
        "commit": commit,
        "changed": bool(changed),
        "packages": packages,
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "brief": brief,
    }


def run(out: Path, names: list[str], patterns: list[str], limit: int, brief: bool = False) -> None:
    """Measure what the file does not hold yet, one line at a time."""
    own, done = version(brief), set()
    if out.exists() and out.stat().st_size:
        found, rows = read(out)
        if found != own:
            raise SystemExit(f"{out}: was begun with {found}, this is {own}; begin a new file with --out")
        done = {(row["network"], row["pattern"]) for row in rows}
        out.write_text(
            "".join(line for line in out.read_text().splitlines(keepends=True) if line.endswith("\n"))
        )
    else:
        out.write_text(json.dumps({"version": own}) + "\n")
    work = [(name, pattern) for name in names for pattern in patterns if (name, pattern) not in done]
    started = time.monotonic()
    for count, (name, pattern) in enumerate(work, 1):
        row: dict[str, Any] = {"network": name, "pattern": pattern}
        try:
            with limited(limit):
                row = measure(name, pattern, brief)
        except NotMasked as reason:
            row["not_masked"] = str(reason)[:200]
        except Exception as failure:
            row["failure"] = f"{type(failure).__name__}: {failure}"[:300]
        row["date"] = datetime.now(UTC).date().isoformat()
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = (time.monotonic() - started) / count * (len(work) - count) / 60
        print(json.dumps(row), f"{count}/{len(work)}, about {left:.0f} min left", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, dest="verb")
    runner = verbs.add_parser("run")
    runner.add_argument("--out", type=Path, default=Path("surgery.jsonl"))
    runner.add_argument("--networks", nargs="*", default=list(ZOO))
    runner.add_argument(
        "--foreign", action="store_true", help="also those of transformers, smp, Ultralytics and MONAI"
    )
    runner.add_argument(
        "--brief", action="store_true", help="shares without gather alone: no latency, no Torch-Pruning"
    )
    runner.add_argument("--patterns", nargs="*", default=list(PATTERNS), choices=PATTERNS)
    runner.add_argument(
        "--part", nargs=2, type=int, default=(1, 1), metavar=("K", "N"), help="the K-th of N parts"
    )
    runner.add_argument("--limit", type=int, default=600, help="seconds for one network under one pattern")
    printer = verbs.add_parser("table")
    printer.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.verb == "run":
        part, parts = given.part
        if not 1 <= part <= parts:
            parser.error(f"--part {part} {parts}: the first is 1, the last {parts}")
        networks = [*given.networks, *(FOREIGN if given.foreign else ())]
        run(given.out, networks[part - 1 :: parts], given.patterns, given.limit, given.brief)
    else:
        print(table(given.files))


if __name__ == "__main__":
    main()
