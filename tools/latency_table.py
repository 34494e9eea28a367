"""Measure each layer of a recipe's network at several widths on a target: the table that latency targets read.

python tools/latency_table.py utkface/small data.root=/data --out runs/latency.json
python tools/latency_table.py utkface/small data.root=/data --target onnxruntime-cpu --points 5 --repeats 50

Every convolution and linear layer is written as an ONNX file of its own, at `--points` widths of either side from an
eighth to all, and timed alone on the target's backend (batch of the target). What the whole network takes beyond the
sum of its layers is `rest_ms`. A recipe reads the table back by

    sparsity: {selective: {latency_reduction: 0.5, latency_table: runs/latency.json}}
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compactmtl.backends import get_backend
from compactmtl.backends.machine import cpu_name
from compactmtl.config import Target, load_recipe, load_target
from compactmtl.data import load_dataset
from compactmtl.export import export_onnx
from compactmtl.graph import ChannelGraph
from compactmtl.overparam import contract
from compactmtl.sparsity import LatencyTable, LayerLatency
from compactmtl.tasks import build_tasks
from compactmtl.train.run import example_inputs, fresh_model
from compactmtl.verify import measure_latency

OPSET = 18
Layer = nn.Conv2d | nn.Linear


def layer_file(
    layer: Layer, outputs: int, inputs: int | None, shape: torch.Size, path: Path
) -> NDArray[np.float32]:
    """Write a layer of these widths as ONNX for inputs of `shape` and return a random input; no inputs: depthwise."""
    generator = np.random.default_rng(0)
    read = outputs if inputs is None else inputs
    if isinstance(layer, nn.Linear):
        size = (*shape[:-1], read)
        weight = generator.standard_normal((read, outputs)).astype(np.float32)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        size = (shape[0], read, *shape[2:])
        weight = generator.standard_normal(
            (outputs, 1 if inputs is None else read, *layer.kernel_size)
        ).astype(np.float32)
        top, left = (0, 0) if isinstance(layer.padding, str) else layer.padding
        node = helper.make_node(
            "Conv",
            ["x", "w"],
            ["y"],
            strides=list(layer.stride),
            dilations=list(layer.dilation),
            group=outputs if inputs is None else 1,
            **({"auto_pad": "SAME_UPPER"} if layer.padding == "same" else {"pads": [top, left, top, left]}),
        )
    rank = len(size)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9), path)
    return generator.standard_normal(size).astype(np.float32)


def identity_file(path: Path) -> NDArray[np.float32]:
    """Write a model that does nothing, whose time is what any call costs, and return its input."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1)) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9), path)
    return np.ones((1, 1), dtype=np.float32)


def widths(full: int, points: int) -> list[int]:
    """Channel counts from an eighth of `full` up, in equal steps."""
    return sorted({max(round(full * share), 1) for share in np.linspace(1 / 8, 1, points)})


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


def measure(
    model: nn.Module, inputs: tuple[Tensor, ...], name: str, target: Target, points: int, repeats: int
) -> LatencyTable:
    """The table of a plain model on a target."""
    backend = get_backend(target.backend)

    def seconds(path: Path, value: NDArray[np.float32], what: str) -> float:
        with backend.open(path, target) as runner:
            result = measure_latency({what: runner}, torch.from_numpy(value), warmup=5, repeats=repeats)
        return result.stats[what].min_ms  # what disturbs a layer that takes microseconds is not its own

    graph = ChannelGraph.trace(model, inputs)
    full = graph.widths(np.ones(graph.classes, dtype=bool))
    shapes, modules = input_shapes(model, inputs), dict(model.named_modules())
    layers = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        call = seconds(path, identity_file(path), "an empty call")
        for layer, (outputs, read) in full.items():
            module = modules[layer]
            if not isinstance(module, nn.Conv2d | nn.Linear) or (
                read is not None and getattr(module, "groups", 1) > 1
            ):
                raise SystemExit(f"{layer} is a {type(module).__name__} that this tool cannot measure alone")
            rows = widths(outputs, points)
            columns = [None] if read is None else widths(read, points)
            ms = []
            for out in rows:
                ms.append(
                    tuple(
                        max(
                            seconds(path, layer_file(module, out, into, shapes[layer], path), layer) - call,
                            0.0,
                        )
                        for into in columns
                    )
                )
            layers[layer] = LayerLatency(
                outputs=tuple(rows),
                inputs=None if read is None else tuple(c for c in columns if c is not None),
                ms=tuple(ms),
            )
            print(f"{layer}: {ms[-1][-1]:.4f} ms at {outputs} × {read or 1}", flush=True)
        whole = Path(folder) / "whole.onnx"
        export_onnx(model, inputs, whole, input_names=["image"])
        total = seconds(whole, inputs[0].numpy(), "whole")
    parts = sum(table.ms[-1][-1] for table in layers.values())
    print(f"whole network: {total:.3f} ms, its layers {parts:.3f} ms")
    return LatencyTable(target=name, device=cpu_name(), rest_ms=max(total - parts, 0.0), layers=layers)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--out", type=Path, default=Path("latency.json"))
    parser.add_argument("--points", type=int, default=4, help="widths of either side of a layer")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    recipe, target = load_recipe(args.recipe, args.overrides), load_target(args.target)
    tasks = build_tasks(recipe.tasks, load_dataset(recipe.data, "val").specs)
    model = contract(fresh_model(recipe, tasks)).eval()
    inputs = example_inputs(recipe, target.latency.batch)
    measure(model, inputs, args.target, target, args.points, args.repeats).save(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
