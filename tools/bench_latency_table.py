"""How well a latency table predicts networks that it was not measured on, beside how well a second timing of them does.

    python -m tools.bench_latency_table resnet18 --size 64 --targets onnxruntime-cpu onnxruntime-cpu-int8 openvino
    python -m tools.bench_latency_table camvid/dense data.root=/data/camvid --cuts 40

The network is one of timm, or that of a recipe at the recipe's own size. For each target one line of Markdown: how long the table takes from nothing and from the cache, and of `--cuts` random cuts
of the network the relative error of the predicted time, median and 90th percentile, with the same of the first of two
timings against the second. Nothing of it is kept. `--beside` holds other tables of the same network against the same cuts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from compactmtl.backends import get_backend, load_target
from compactmtl.config import load_recipe
from compactmtl.data import load_dataset
from compactmtl.latency import Cutter, Store, latency_table
from compactmtl.latency.measure import conditions_of
from compactmtl.latency.observe import observe
from compactmtl.overparam import contract
from compactmtl.runs.model import example_inputs, fresh_model
from compactmtl.sparsity import LatencyTable
from compactmtl.tasks import build_tasks

HEADER = """\
| network | target | table, s | from the cache, s | whole, ms | table's error, median / 90 % | a second timing's |
| --- | --- | ---: | ---: | ---: | ---: | ---: |"""


def network(name: str, size: int, overrides: list[str], batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A plain network of timm at `size`, or of a recipe at its own, and inputs for it.

    Raises ConfigError where a recipe, or its data, is not there: what its tasks predict is the data's to say.
    """
    if timm.is_model(name):
        model = timm.create_model(name, num_classes=10).eval()
        return model, (torch.randn(batch, 3, size, size),)
    recipe = load_recipe(name, overrides)
    tasks = build_tasks(recipe.tasks, load_dataset(recipe.data, "val").specs)
    return contract(fresh_model(recipe, tasks)).eval(), example_inputs(recipe, batch)


def rows(
    name: str, size: int, overrides: list[str], target_name: str, cuts: int, beside: Sequence[Path] = ()
) -> Iterator[str]:
    """A line of the table for the network on a target, and one for each table `beside`.

    Raises ConfigError where one of these is of another network.
    """
    target = load_target(target_name)
    model, inputs = network(name, size, overrides, target.latency.batch)
    align = get_backend(target.backend).channel_step(target)
    others = {path: LatencyTable.load(path) for path in beside}
    with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
        store, path = Store(conditions_of(target, len(inputs[0])), Path(folder)), Path(folder) / "cut.onnx"
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            table = latency_table(model, inputs, target, target_name, align=align, store=store)
            seconds.append(time.perf_counter() - start)
        full = {layer: one.full for layer, one in table.layers.items()}
        compared: dict[Path | None, LatencyTable] = {None: table}
        for file, other in others.items():
            other.check(full, table.image)
            compared[file] = other
        errors: dict[Path | None, list[float]] = {one: [] for one in compared}
        again = []
        cutter = Cutter(model, inputs, align)
        for kept in cutter.plan(cuts, seed=1):
            cut = cutter.cut(kept)
            first, second = (observe(cut, inputs, full, target, path) for _ in range(2))
            measured = (first.wall + second.wall) / 2
            for key, one in compared.items():
                errors[key].append(abs(one.milliseconds(first.widths) / measured - 1))
            again.append(abs(first.wall / second.wall - 1))
    height, width = inputs[0].shape[-2:]
    place = f"| {name}, {height}×{width} | `{target_name}`"
    yield (
        f"{place} | {seconds[0]:.0f} | {seconds[1]:.1f} | {table.whole_ms or 0.0:.2f} | {spread(errors[None])} |"
        f" {spread(again)} |"
    )
    for file, other in others.items():
        yield f"{place}, {file.stem} | — | — | {other.whole_ms or 0.0:.2f} | {spread(errors[file])} | {spread(again)} |"


def spread(errors: Sequence[float]) -> str:
    """Median and 90th percentile."""
    return f"{np.median(errors):.1%} / {np.percentile(errors, 90):.1%}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", help="a network of timm, or a recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values that override the recipe")
    parser.add_argument("--size", type=int, default=224, help="of a network of timm")
    parser.add_argument("--targets", nargs="+", default=["onnxruntime-cpu"])
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument(
        "--beside",
        metavar="TABLE.json",
        type=Path,
        nargs="+",
        default=[],
        help="tables of the network on the one target, such as of an earlier version, to hold against the same cuts",
    )
    given = parser.parse_args()
    if given.beside and len(given.targets) > 1:
        parser.error("--beside is of one target: name that one alone")
    if given.overrides and timm.is_model(given.network):
        parser.error(
            f"{given.overrides[0]}: values override a recipe, and {given.network} is a network of timm"
        )
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(HEADER, flush=True)
    for target in given.targets:
        for line in rows(given.network, given.size, given.overrides, target, given.cuts, beside=given.beside):
            print(line, flush=True)


if __name__ == "__main__":
    main()
