"""Measure each layer of a recipe's network at several widths on a target: the table that latency targets read.

python tools/latency_table.py utkface/small data.root=/data --out runs/latency.json
python tools/latency_table.py utkface/small data.root=/data --target onnxruntime-cpu --points 5 --repeats 50

Every convolution and linear layer is written as an ONNX file of its own, at `--points` widths of either side from an
eighth to all, and timed on the target's backend (batch of the target): what each further copy beside it takes, with
weights of its own, for a layer alone pays for the way into the backend's memory layout and out of it, and finds its
weights in the cache. `rest_ms` is what the network with a quarter of its channels takes beyond its layers. The whole
network and a half of it are timed, too, to tell how well the table foresees (at the quarter it must agree). A module that
a forward calls several times counts once. A recipe reads the table back by

    sparsity: {selective: {latency_reduction: 0.5, latency_table: runs/latency.json}}
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compactmtl.backends import align_of, get_backend, load_target
from compactmtl.backends.machine import cpu_name
from compactmtl.config import Target, load_recipe
from compactmtl.data import load_dataset
from compactmtl.errors import CompactError, ConfigError
from compactmtl.export import export_onnx
from compactmtl.graph import ChannelGraph
from compactmtl.overparam import contract
from compactmtl.runs.model import example_inputs, fresh_model
from compactmtl.sparsity import LatencyTable, LayerLatency, channel_groups
from compactmtl.surgery import compact
from compactmtl.tasks import build_tasks
from compactmtl.verify import measure_latency

OPSET = 18
COPIES = 5  # of a layer, side by side
SHARES = {"half": 0.5, "quarter": 0.25}  # of the channels, of the cut networks that are timed
Layer = nn.Conv2d | nn.Linear
Widths = Mapping[str, tuple[int, int | None]]


def layer_file(
    layer: Layer, outputs: int, inputs: int | None, shape: torch.Size, path: Path, copies: int
) -> NDArray[np.float32]:
    """Write the sum of `copies` layers of these widths, each with weights of its own, as ONNX for inputs of `shape`.

    Returns a random input; no `inputs`: a depthwise layer.
    """
    generator = np.random.default_rng(0)
    read = outputs if inputs is None else inputs
    size = (*shape[:-1], read) if isinstance(layer, nn.Linear) else (shape[0], read, *shape[2:])
    options: dict[str, Any]
    if isinstance(layer, nn.Linear):
        kind, options = "MatMul", {}
        weight: tuple[int, ...] = (read, outputs)
    else:
        kind, weight = "Conv", (outputs, 1 if inputs is None else read, *layer.kernel_size)
        top, left = (0, 0) if isinstance(layer.padding, str) else layer.padding
        options = {
            "strides": list(layer.stride),
            "dilations": list(layer.dilation),
            "group": outputs if inputs is None else 1,
            **({"auto_pad": "SAME_UPPER"} if layer.padding == "same" else {"pads": [top, left, top, left]}),
        }
    nodes, weights, found = [], [], "x"
    for copy_of in range(copies):
        name, result = f"w{copy_of}", f"layer{copy_of}"
        values = generator.standard_normal(weight).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        nodes.append(helper.make_node(kind, ["x", name], [result], **options))
        if copy_of:
            nodes.append(helper.make_node("Add", [found, result], [result := f"sum{copy_of}"]))
        found = result
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info(found, TensorProto.FLOAT, [None] * len(size))],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9), path)
    return generator.standard_normal(size).astype(np.float32)


def widths(full: int, points: int, align: int) -> list[int]:
    """Channel counts: the least that surgery leaves, and in equal steps from an eighth of `full` up, in its multiples."""
    steps = {math.ceil(full * share / align) * align for share in np.linspace(1 / 8, 1, points)}
    return sorted({min(step, full) for step in {*steps, align}})


def input_shapes(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, torch.Size]:
    """The input's shape of every convolution and linear layer, by name."""
    found: dict[str, torch.Size] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            found.setdefault(name, args[0].shape)

        return hook

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def narrowed(model: nn.Module, inputs: tuple[Tensor, ...], share: float, align: int) -> nn.Module:
    """A copy of the model with this share of the channels of every group family, by surgery."""
    copied = copy.deepcopy(model)
    # the last norm of a residual block may start at zero, and the block would go whole
    for parameter in copied.parameters():
        if not parameter.any():
            torch.nn.init.ones_(parameter)
    groups = channel_groups(copied, inputs, scope="model")
    for family in groups.bound:
        gone = torch.arange(family.size) >= max(round(family.size * share / align), 1) * align
        for part in family.tensors:
            part.zero_(part.parameter.detach(), gone)
    return compact(copied, inputs, align=align).model


def widths_of(graph: ChannelGraph) -> Widths:
    """Output and input channels of every layer of a traced network."""
    return graph.widths(np.ones(graph.classes, dtype=bool))


def measurable(model: nn.Module, found: Widths) -> dict[str, Layer]:
    """The layers of these widths by name. Raises ConfigError where one cannot be timed alone."""
    modules, layers = dict(model.named_modules()), {}
    for name, (_, read) in found.items():
        module = modules[name]
        grouped = read is not None and getattr(module, "groups", 1) > 1
        if not isinstance(module, nn.Conv2d | nn.Linear) or grouped:
            kind = f"{'grouped ' if grouped else ''}{type(module).__name__}"
            raise ConfigError(
                f"{name} is a {kind}, which this tool cannot time alone",
                "take a network of plain and depthwise convolutions and linear layers, or a target of MACs",
            )
        layers[name] = module
    return layers


def timer(target: Target, repeats: int) -> Callable[[Path, NDArray[np.float32]], float]:
    """What times a model file on an input, in ms."""
    backend = get_backend(target.backend)

    def milliseconds(path: Path, value: NDArray[np.float32]) -> float:
        with backend.open(path, target) as runner:
            result = measure_latency({"it": runner}, torch.from_numpy(value), warmup=5, repeats=repeats)
        return result.stats["it"].min_ms  # what disturbs a layer that takes microseconds is not its own

    return milliseconds


def measure(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    name: str,
    target: Target,
    points: int,
    repeats: int,
    align: int = 1,
) -> LatencyTable:
    """The table of a plain model on a target, at widths that are multiples of `align`."""
    milliseconds = timer(target, repeats)
    graph = ChannelGraph.trace(model, inputs)
    graphs, total = {"whole": graph}, {}
    shapes, modules = input_shapes(model, inputs), measurable(model, widths_of(graph))
    layers = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"

        def one_of(layer: Layer, outputs: int, read: int | None, shape: torch.Size) -> float:
            alone, beside = (
                milliseconds(path, layer_file(layer, outputs, read, shape, path, copies))
                for copies in (1, COPIES)
            )
            return max(beside - alone, 0.0) / (COPIES - 1)

        for layer, (outputs, read) in widths_of(graph).items():
            module = modules[layer]
            rows = widths(outputs, points, align)
            columns: list[int | None] = [None]
            if read is not None:
                columns = [*widths(read, points, align)]
            layers[layer] = LayerLatency(
                outputs=tuple(rows),
                inputs=None if read is None else tuple(c for c in columns if c is not None),
                ms=tuple(tuple(one_of(module, out, into, shapes[layer]) for into in columns) for out in rows),
            )
            print(f"{layer}: {layers[layer].ms[-1][-1]:.4f} ms at {outputs} × {read or 1}", flush=True)
        networks = {"whole": model} | {cut: narrowed(model, inputs, SHARES[cut], align) for cut in SHARES}
        for cut, network in networks.items():
            graphs[cut] = ChannelGraph.trace(network, inputs)
            export_onnx(network, inputs, path, input_names=["image"])
            total[cut] = milliseconds(path, inputs[0].numpy())
    found = {cut: widths_of(one) for cut, one in graphs.items()}
    beyond = total["quarter"] - sum(layers[layer].at(*width) for layer, width in found["quarter"].items())
    heads = getattr(model, "heads", None)
    table = LatencyTable(
        version=2,
        target=name,
        device=cpu_name(),
        image=tuple(inputs[0].shape[1:]),
        tasks=tuple(heads) if isinstance(heads, nn.ModuleDict) else (),
        rest_ms=max(beyond, 0.0),
        layers=layers,
    )
    print(f"no layer's: {table.rest_ms:.3f} ms")
    for cut, ms in total.items():
        print(f"{cut}: {ms:.3f} ms, by the table {table.milliseconds(found[cut]):.3f} ms")
    return table


def main() -> int:
    """Measure and write the table; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--out", type=Path, default=Path("latency.json"))
    parser.add_argument("--points", type=at_least(2), default=4, help="widths of either side of a layer")
    parser.add_argument("--repeats", type=at_least(1), default=30)
    parser.add_argument(
        "--trust", action="store_true", help="import a data set's class that the recipe names"
    )
    args = parser.parse_intermixed_args()
    try:
        run(args).save(args.out)
    except CompactError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {args.out}")
    return 0


def run(args: argparse.Namespace) -> LatencyTable:
    """Measure what the command line says."""
    recipe, target = load_recipe(args.recipe, args.overrides), load_target(args.target)
    if target.precision != "fp32":
        raise ConfigError(f"{args.target} runs in {target.precision}", "layers are timed in fp32 alone")
    if args.out.is_dir():
        raise ConfigError(f"{args.out} is a folder", "name the table's file with --out")
    args.out.parent.mkdir(parents=True, exist_ok=True)  # now, not after minutes of measuring
    tasks = build_tasks(recipe.tasks, load_dataset(recipe.data, "val", trust=args.trust).specs)
    model = contract(fresh_model(recipe, tasks)).eval()
    inputs = example_inputs(recipe, target.latency.batch)
    return measure(model, inputs, args.target, target, args.points, args.repeats, align_of(recipe).channels)


def at_least(least: int) -> Callable[[str], int]:
    """What reads a whole number of the command line."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
