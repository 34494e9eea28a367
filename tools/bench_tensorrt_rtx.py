"""Every recipe's network through NVIDIA's own parser and builder: TensorRT for RTX, in each precision and capability.

    python -m tools.bench_tensorrt_rtx run --out rtx.jsonl         # goes on where it stopped
    python -m tools.bench_tensorrt_rtx run --networks utkface/small zoo:resnet18 --forms dense
    python -m tools.bench_tensorrt_rtx table rtx.jsonl             # Markdown for docs/results/tensorrt-rtx.md

Networks are the recipes', at the recipes' size, with random weights and with norms that know noise; recipes of one and the
same network share its rows. `compact` is what surgery leaves of half of the channels of every group. Engines are built and
not run: no row says anything of speed. The specs of the tasks come from the small data sets that the tests write.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.backends import get_backend, load_target
from compactmtl.backends.machine import cpu_name
from compactmtl.backends.tensorrt_rtx.entry import TensorRTRtxBackend
from compactmtl.config import Recipe, list_recipes, load_recipe
from compactmtl.config.target import Target
from compactmtl.data import load_dataset
from compactmtl.errors import CompactError, ConfigError
from compactmtl.export import export_onnx
from compactmtl.export.precision import apply_precision
from compactmtl.latency import Cutter
from compactmtl.runs.model import example_inputs, fresh_model, plain_form
from compactmtl.tasks import build_tasks
from tools.rtx_table import read, table
from tools.surgery_zoo import ZOO, build, calibrate, limited

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
CAPABILITIES = (7.5, 8.0, 8.6, 8.9, 12.0)
FORMS = ("dense", "compact")
INPUT = "image"
ZOO_PREFIX = "zoo:"
# Few, of noise: what the graph looks like does not depend on them.
QUICK = ("int8.search=0", "int8.samples=2", "fp16.samples=2")


@dataclass(frozen=True)
class Network:
    """A network by the first recipe that has it, and all of those that do; `zoo:NAME` is one of `tools.surgery_zoo`."""

    name: str
    recipes: tuple[str, ...]


def networks() -> list[Network]:
    """Each different network of the recipes, at its size."""
    found: dict[str, list[str]] = {}
    for entry in list_recipes():
        found.setdefault(identity(load_recipe(entry.name)), []).append(entry.name)
    return [Network(names[0], tuple(names)) for names in found.values()]


def identity(recipe: Recipe) -> str:
    """What decides the graph of a recipe's plain network: data, size, encoder, heads. Weights and training don't."""
    tasks = {
        name: task.model_dump(mode="json", include={"kind", "head", "options", "target"})
        for name, task in recipe.tasks.items()
    }
    overparam = recipe.overparam
    thin = overparam is not None and overparam.keep_factors_below
    model = recipe.model.model_dump(mode="json")
    return json.dumps(
        [recipe.data.name, list(recipe.data.size), tasks, model, thin and overparam.model_dump(mode="json")],  # type: ignore[union-attr]
        sort_keys=True,
    )


@contextmanager
def small_data(recipe: Recipe) -> Iterator[list[str]]:
    """Overrides that make a recipe read a small data set, which is gone afterwards."""
    if recipe.data.name == "scenes":
        yield ["data.options.train=8", "data.options.val=4"]
        return
    with tempfile.TemporaryDirectory(prefix="compactmtl-data-") as folder:
        root = Path(folder) / recipe.data.name
        root.mkdir()
        for name in sorted(recipe.data.names):  # of several data sets, side by side
            module = importlib.import_module(f"tests.support.layouts.{name}")
            getattr(module, f"write_{name}")(root)
        yield [f"data.root={root}"]


def build_network(name: str, overrides: Sequence[str] = ()) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A recipe's network in the form that it deploys, or one of the zoo, with random weights; and an image of noise.

    `overrides` change the recipe, such as its size.
    """
    if name.startswith(ZOO_PREFIX):
        torch.manual_seed(0)
        model, image = build(name.removeprefix(ZOO_PREFIX))
        calibrate(model, image)
        return model.eval(), image
    overrides = (*overrides, "model.encoder.pretrained=false", "model.encoder.weights=null")
    recipe = load_recipe(name, overrides)
    with small_data(recipe) as elsewhere:
        specs = load_dataset(load_recipe(name, (*overrides, *elsewhere)).data, "val").specs
    torch.manual_seed(0)
    inputs = example_inputs(recipe)
    network = fresh_model(recipe, build_tasks(recipe.tasks, specs))
    if (
        max(inputs[0].shape[2:]) <= 256
    ):  # norms take the statistics of noise, as after training; it takes memory
        calibrate(network, inputs)
    return plain_form(recipe, network).eval(), inputs


def export(model: nn.Module, inputs: tuple[Tensor, ...], target: Target, path: Path) -> Path:
    """The file that an export for the target hands to the backend."""
    return lower(export_float(model, inputs, target, path), inputs, target)


def export_float(model: nn.Module, inputs: tuple[Tensor, ...], target: Target, path: Path) -> Path:
    """The float32 file that an export for the target begins with; targets of the same `onnx` share it."""
    onnx = target.onnx
    export_onnx(
        model,
        inputs,
        path,
        input_names=[INPUT],
        opset=onnx.opset,
        dynamic_batch=onnx.dynamic_batch,
        dynamic_size=onnx.dynamic_size,
    )
    return path


def lower(path: Path, inputs: tuple[Tensor, ...], target: Target) -> Path:
    """A float32 file brought to the target's precision, in place."""
    feeds = [{INPUT: torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).numpy()}] * 2
    apply_precision(path, target, feeds)
    return path


def target_of(precision: str, capability: float | None = None, overrides: Sequence[str] = ()) -> Target:
    """The bundled target, for one capability or for its own list."""
    one = () if capability is None else (f"tensorrt_rtx.compute=[{capability}]",)
    return load_target(f"tensorrt-rtx-{precision}", (*QUICK, *one, *overrides))


def outcome(path: Path, target: Target) -> dict[str, Any]:
    """What becomes of one build: accepted with its figures, refused by us before, or failed in the builder."""
    backend = get_backend(target.backend)
    assert isinstance(backend, TensorRTRtxBackend)
    started = time.monotonic()
    try:
        built = backend.build_here(path, target)
    except ConfigError as error:
        return {"outcome": "refused", "why": error.message.replace(str(path), "the model")}
    except CompactError as error:
        return {"outcome": "failed", "why": str(error).replace(str(path), "the model")}
    return {
        "outcome": "accepted",
        "build_seconds": built.facts.build_seconds,
        "seconds": time.monotonic() - started,
        "peak_mib": built.facts.build_peak_mib,
        "megabytes": len(built.data) / 1e6,
        "types": built.facts.parsed_types,
    }


def version() -> dict[str, Any]:
    """What the figures are of."""
    library = get_backend("tensorrt-rtx")
    assert isinstance(library, TensorRTRtxBackend)
    return {
        "tensorrt_rtx": library.library.load().__version__,
        "torch": metadata.version("torch"),
        "processor": cpu_name(),
    }


def rows_of(
    network: Network, form: str, precisions: Sequence[str], done: set[tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """The rows of one network in one form that `done` lacks, one at a time."""
    wanted = [
        (precision, capability)
        for precision in precisions
        for capability in CAPABILITIES
        if (network.name, form, precision, str(capability)) not in done
    ]
    if not wanted:
        return
    row = {"network": network.name, "recipes": list(network.recipes), "form": form}
    model, inputs = build_network(network.name)
    if form == "compact":
        cutter = Cutter(model, inputs, align=8)
        model = cutter.cut([max(size // 2 // 8, 1) * 8 if size >= 8 else size for size in cutter.sizes])
    with tempfile.TemporaryDirectory(prefix="compactmtl-rtx-") as folder:
        for precision in dict.fromkeys(one for one, _ in wanted):
            path, failure = Path(folder) / precision / "model.onnx", ""
            path.parent.mkdir()
            try:
                export(model, inputs, target_of(precision), path)
            except CompactError as error:
                failure = str(error)
            for capability in [cap for one, cap in wanted if one == precision]:
                found = (
                    {"outcome": "not exported", "why": failure}
                    if failure
                    else outcome(path, target_of(precision, capability))
                )
                yield row | {"precision": precision, "capability": capability} | found


def run(
    out: Path, chosen: Sequence[Network], forms: Sequence[str], precisions: Sequence[str], limit: int
) -> None:
    """Build what the file does not hold yet, one line at a time."""
    own, kept = version(), list[dict[str, Any]]()
    if out.exists() and out.stat().st_size:
        found, _, kept = read(out)
        if found != own:
            raise SystemExit(f"{out}: was begun with {found}, this is {own}; begin a new file with --out")
    # Written anew: a recipe that came since adds a network, and a last line may have been cut off.
    lines = [{"version": own, "networks": len(networks())}, *kept]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done: set[tuple[str, ...]] = {
        (r["network"], r["form"], r["precision"], str(r["capability"])) for r in kept
    }
    for form in forms:
        for network in chosen:
            try:
                with limited(limit):
                    for row in rows_of(network, form, precisions, done):
                        row["date"] = datetime.now(UTC).date().isoformat()
                        with out.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                        print(json.dumps(row), flush=True)
            except Exception as failure:
                print(f"{network.name} {form}: {type(failure).__name__}: {failure}"[:500], flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, dest="verb")
    runner = verbs.add_parser("run")
    runner.add_argument("--out", type=Path, default=Path("rtx.jsonl"))
    known = [*networks(), *(Network(ZOO_PREFIX + name, ()) for name in ZOO)]
    runner.add_argument(
        "--networks",
        nargs="*",
        metavar="RECIPE",
        help="those of these recipes, and zoo:NAME (default: all recipes)",
    )
    runner.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    runner.add_argument("--precisions", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    runner.add_argument("--limit", type=int, default=1200, help="seconds for one network in one form")
    printer = verbs.add_parser("table")
    printer.add_argument("file", type=Path)
    given = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.verb == "table":
        print(table(given.file))
        return
    names = {one: {one.name, *one.recipes} for one in known}
    asked = {name for one in known for name in one.recipes} if given.networks is None else set(given.networks)
    if unknown := asked - set().union(*names.values()):
        parser.error(
            f"no recipe is called {', '.join(sorted(unknown))}; `compactmtl recipes list` shows them"
        )
    chosen = [one for one in known if asked & names[one]]
    run(given.out, chosen, given.forms, given.precisions, given.limit)


if __name__ == "__main__":
    main()
