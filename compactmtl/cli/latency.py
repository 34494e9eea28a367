"""`compactmtl latency`: measure what each layer of a network takes on a target, for budgets in milliseconds."""

from __future__ import annotations

import argparse
import re
from math import prod
from typing import TYPE_CHECKING

from compactmtl.artifacts.told import tell
from compactmtl.cli.parser import MOST, add_trust

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compactmtl.config.target import Target
    from compactmtl.latency import Settings
    from compactmtl.sparsity import LatencyTable

HELP = "measure what each layer of a network takes on a target, for latency budgets"
EXAMPLE = """\
compactmtl latency utkface/small data.root=/data --target onnxruntime-cpu
compactmtl latency runs/faces --target onnxruntime-cpu-int8 --out faces-int8.json
compactmtl latency mymodule:build --input 1x3x224x224 --target openvino
compactmtl latency runs/faces --target tensorrt-fp16 --kit table-kit.zip
compactmtl latency --from results.json --out faces-jetson.json"""
UNRELIABLE = "warning: that is too far off to choose by: measure again with --again, while nothing else runs on this machine"
MOST_LAYERS = 12
DEFAULT_TARGET = "onnxruntime-cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "subject",
        metavar="RECIPE_RUN_OR_MODULE",
        nargs="?",
        help="a recipe, a run folder, or package.module:function that returns an nn.Module",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="values that override the recipe; of a run, where its data is",
    )
    parser.add_argument(
        "--target", metavar="NAME", default=DEFAULT_TARGET, help=f"target (default: {DEFAULT_TARGET})"
    )
    parser.add_argument(
        "--input",
        metavar="1x3x224x224",
        action="append",
        default=[],
        help="shape of an input of a module, batch first; once for each input",
    )
    parser.add_argument(
        "--align",
        type=int,
        metavar="N",
        help="multiple of channels that the target's kernels are written for (default: the target's)",
    )
    parser.add_argument(
        "--cuts", type=int, default=12, metavar="N", help="random cuts of the network to time (default: 12)"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="measure anew, in place of what the cache has of this network, such as where it was measured on a busy machine",
    )
    parser.add_argument("--out", metavar="FILE", help="write the table as JSON")
    parser.add_argument(
        "--kit",
        metavar="PATH",
        help="time nothing here: write a kit, a folder or a file that ends in .zip, that times the network and its cuts on a"
        " machine which has only the runtime",
    )
    parser.add_argument(
        "--from",
        dest="results",
        metavar="FILE",
        help="make the table from the results.json that such a kit wrote on its device",
    )
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, read from the cache or from a kit's results, and print; or write a kit."""
    from pathlib import Path

    from compactmtl.backends import get_backend, load_target
    from compactmtl.cli.disk import check_writable
    from compactmtl.errors import ConfigError
    from compactmtl.latency import Settings, latency_table
    from compactmtl.latency.kit import table_from_results

    if args.cuts < 1 or (args.align is not None and args.align < 1):
        raise ConfigError("--cuts and --align are numbers of 1 or more", "leave them out for the defaults")
    out = Path(args.out) if args.out else None
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder", "name the table's file")
    if out is not None:
        check_writable(out.absolute().parent)
    if args.results is not None:
        if args.subject or args.overrides or args.kit or args.again:
            raise ConfigError(
                "--from reads a kit's results, which know their network", "leave everything but --out out"
            )
        table = table_from_results(Path(args.results))
    elif not args.subject:
        raise ConfigError("no network is named", "name a recipe, a run or a module; or --from results.json")
    else:
        target = load_target(args.target)
        backend = get_backend(target.backend)
        settings, align = Settings(cuts=args.cuts), args.align or backend.channel_step(target)
        if args.kit is not None:
            return _kit(args, target, align, settings)
        backend.require(target)
        model, inputs = _subject(args, target.latency.batch)
        table = latency_table(
            model,
            inputs,
            target,
            args.target,
            align=align,
            settings=settings,
            again=args.again,
            progress=tell,
        )
    print("\n".join(_summary(table)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.save(out)
        print(f"table: {out}")
    return 0


def _kit(args: argparse.Namespace, target: Target, align: int, settings: Settings) -> int:
    """Write a kit of the network and its cuts, and say how to use it."""
    from pathlib import Path

    from compactmtl.errors import ConfigError, command
    from compactmtl.export.kit.on_device import RESULTS, SCRIPT
    from compactmtl.latency.kit import write_table_kit

    if args.out is not None:
        raise ConfigError(
            "--out is of a table, and a kit's is made when its results are back", "leave --out out"
        )
    if args.again:
        raise ConfigError("--again is of a measurement here, and a kit measures elsewhere", "leave it out")
    model, inputs = _subject(args, target.latency.batch)
    kit = write_table_kit(
        model,
        inputs,
        target,
        args.target,
        Path(args.kit),
        align=align,
        settings=settings,
        progress=tell,
    )
    print(f"kit: {kit.path} ({kit.megabytes:.1f} MB)")
    print(f"  on the device, with numpy and the runtime ({kit.install}): python {SCRIPT}")
    print(f"  then here: {command('latency', '--from', RESULTS, '--out', 'TABLE.json')}")
    return 0


def _subject(args: argparse.Namespace, batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The plain network that is named, and inputs of the target's batch size."""
    from pathlib import Path

    from compactmtl.artifacts.run_folder import is_run
    from compactmtl.config import load_recipe
    from compactmtl.config.trust import is_class_name
    from compactmtl.data import load_dataset
    from compactmtl.errors import ConfigError
    from compactmtl.models.listing import recipe_or_module
    from compactmtl.overparam import contract
    from compactmtl.runs import Run
    from compactmtl.runs.model import example_inputs, fresh_model
    from compactmtl.tasks import build_tasks

    if is_class_name(args.subject):
        return _module(args.subject, args.input, args.overrides)
    run = is_run(Path(args.subject))
    recipe_file = None if run else recipe_or_module(args.subject)
    if args.input:
        raise ConfigError("--input is for a module: a recipe and a run say their own size", "leave it out")
    if recipe_file is None:
        opened = Run.open(args.subject, args.overrides)
        return opened.load_plain().eval(), example_inputs(opened.recipe, batch)
    recipe = load_recipe(recipe_file, args.overrides)
    tasks = build_tasks(recipe.tasks, load_dataset(recipe.data, "val", trust=args.trust).specs)
    return contract(fresh_model(recipe, tasks)).eval(), example_inputs(recipe, batch)


def _module(name: str, shapes: list[str], overrides: list[str]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """What a function that the user names on the command line returns; naming it there is the user's word."""
    import torch

    from compactmtl.config.trust import naming
    from compactmtl.errors import ConfigError
    from compactmtl.models.user_code import construct

    if overrides:
        raise ConfigError(
            f"{overrides[0]}: values override a recipe, and {name} is a module", "leave them out"
        )
    if not shapes:
        raise ConfigError(
            f"{name}: the shape of its input is not known", "add --input 1x3x224x224, once for each input"
        )
    sizes = [_sizes(text) for text in shapes]
    with naming(name):
        model = construct(name, "the network to measure", "", {})
    generator = torch.Generator().manual_seed(0)
    return model.eval(), tuple(torch.randn(*one, generator=generator) for one in sizes)


def _sizes(text: str) -> list[int]:
    """The sizes of an input that --input gives. Raises ConfigError."""
    from compactmtl.errors import ConfigError

    parts = re.split(r"[x×X]", text.strip())
    if not all(map(_is_size, parts)):
        written = "x".join(re.findall(r"[0-9]+", text))
        wrong = next((part for part in parts if not _is_size(part)), text)
        near = (
            f"did you mean --input {written}? "
            if written.count("x") and "0" not in written.split("x")
            else ""
        )
        raise ConfigError(
            f"--input {text}: {wrong!r} is no size of 1 or more",
            f"{near}write every size of the input, batch first, with x between them, such as 1x3x224x224",
        )
    sizes = [int(part) for part in parts]
    if prod(sizes) >= MOST:
        raise ConfigError(f"--input {text}: no machine holds so many numbers", "give smaller sizes")
    return sizes


def _is_size(text: str) -> bool:
    return text.isdecimal() and len(text) <= 100 and int(text) > 0  # Python reads no more than 4300 digits


def _summary(table: LatencyTable) -> list[str]:
    """The table in lines for a terminal: the most expensive layers, and how much of the time is in none."""
    full = {name: layer.full for name, layer in table.layers.items()}
    whole = table.milliseconds(full)
    costs = sorted(((layer.at(*full[name]), name) for name, layer in table.layers.items()), reverse=True)
    lines = [
        f"{table.target}, {table.precision}, batch {table.batch}, {table.device}: {whole:.3f} ms for the whole network",
        *(
            f"  {ms:8.4f} ms {ms / whole:6.1%}  {name} {_width(*full[name])}"
            for ms, name in costs[:MOST_LAYERS]
        ),
    ]
    if len(costs) > MOST_LAYERS:
        lines.append(
            f"  {sum(ms for ms, _ in costs[MOST_LAYERS:]):8.4f} ms in {len(costs) - MOST_LAYERS} other layers"
        )
    lines.append(f"  {table.rest_ms:8.4f} ms in no layer")
    if table.memory is not None:
        megas = table.memory.held / 1e6
        lines.append(
            f"  {table.memory_ms(full):8.4f} ms of waiting for weights from memory: a cache holds about {megas:.2g} million"
        )
    if table.error is not None:
        lines.append(f"the measured networks are {table.error:.1%} off by the table, in the median")
    if table.unreliable:
        lines.append(UNRELIABLE)
    return lines


def _width(outputs: int, inputs: int | None) -> str:
    return f"({outputs} channels, depthwise)" if inputs is None else f"({inputs} → {outputs} channels)"
