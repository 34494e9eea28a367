"""How much of the gap between MACs and time `profile --explain` finds, of networks that a pruner made odd on purpose.

    python -m tools.bench_explain resnet18 --size 64 --out runs/explain

Torch-Pruning takes channels without `round_to`, by the norm of their filters: of every convolution, of the first one alone, and of
the last quarter of all. What is left of a layer is an odd number, a half and one: 33 of 64, 65 of 128. For each pair and
target one line of Markdown: the gap, the sum of its parts, and what they do not explain of it. Results are kept in `--out`; the same
command continues where it stopped, `--table` prints what is there.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timm
import torch
import torch_pruning
from torch import Tensor, nn

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.backends import load_target
from compactmtl.errors import CompactError, ConfigError
from compactmtl.latency.observe import opened
from compactmtl.verify.explain import explain
from compactmtl.verify.profile import Options, Subject, profile
from compactmtl.verify.result import Explanation
from tools.begun import differs

TARGETS = ("onnxruntime-cpu", "onnxruntime-cpu-int8", "openvino")
PAIRS = ("odd", "first", "last")
BOUND = 0.1  # of the gap, that may be in no part
MOST_PARTS = 3
HEADER = """\
| network | pruned | target | MACs | time | gap, ms | sum of parts, ms | not explained | largest parts, ms |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"""

Result = dict[str, Any]


def odd(count: int) -> int:
    """What is left of so many channels: a half, and one more where that is even."""
    return (count // 2) | 1


def convolutions(model: nn.Module, pair: str) -> list[str]:
    """The convolutions that lose channels, by name. Raises ConfigError where a network has none without groups."""
    names = [name for name, one in model.named_modules() if isinstance(one, nn.Conv2d) and one.groups == 1]
    if not names:
        raise ConfigError("the network has no convolution", "choose another one")
    return {"odd": names, "first": names[:1], "last": names[-max(len(names) // 4, 1) :]}[pair]


def pruned(model: nn.Module, inputs: tuple[Tensor, ...], pair: str) -> nn.Module:
    """A copy with odd widths, by Torch-Pruning: with each convolution go all layers that its channels are tied to."""
    small = copy.deepcopy(model).eval()
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(small, example_inputs=inputs)
    full = {
        name: int(getattr(small.get_submodule(name), "out_channels", 0)) for name in convolutions(small, pair)
    }
    for name, count in full.items():
        layer = small.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        if layer.out_channels < count:  # with another one that it is tied to
            continue
        order = layer.weight.detach().flatten(1).norm(dim=1).argsort()
        least = sorted(order[: count - odd(count)].tolist())
        group = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=least)
        if graph.check_pruning_group(group):
            group.prune()
    return small


def explained(
    dense: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...], target_name: str, options: Options
) -> Explanation:
    """Both networks exported for the target and measured in the same rounds. Raises CompactError as `profile` does."""
    target = load_target(target_name)
    with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder, ExitStack() as stack:
        subjects = {}
        for name, model in (("dense", dense), ("small", small)):
            path = Path(folder) / name / MODEL_FILE
            path.parent.mkdir()
            runner = stack.enter_context(opened(model, inputs, target, path))
            subjects[name] = Subject(path, target, runner)
        found = profile(subjects, options)
    return explain(found.latency, found.subjects, "small", "dense")


def row(result: Result) -> str:
    """One line of the table."""
    place = f"| {result['network']} | {result['pair']} | `{result['target']}` |"
    if "failed" in result:
        return f"{place} — | — | — | — | — | {result['failed']} |"
    found = Explanation.model_validate(result["explanation"])
    parts = sum(part.milliseconds for part in found.parts)
    share = abs(found.gap - parts) / abs(found.gap) if found.gap else 0.0
    largest = ", ".join(f"{part.key} {part.milliseconds:+.3f}" for part in found.parts[:MOST_PARTS])
    missed = f"{share:.0%}" if share <= BOUND else f"**{share:.0%}**"
    return (
        f"{place} {found.macs_against / found.macs:.2f}× | {found.milliseconds_against / found.milliseconds:.2f}× |"
        f" {found.gap:+.3f} | {parts:+.3f} | {missed} | {largest} |"
    )


def cell(given: argparse.Namespace, pair: str, target: str) -> Result:
    """Prune, export and measure; what cannot be done is a result, too."""
    torch.manual_seed(0)
    model = timm.create_model(given.network, num_classes=10).eval()
    where = {"network": f"{given.network}, {given.size}×{given.size}", "pair": pair, "target": target}
    inputs = (torch.randn(load_target(target).latency.batch, 3, given.size, given.size),)
    options = Options(
        batches=(), repeats=given.repeats, layer_repeats=given.repeats, memory=False, energy=False
    )
    try:
        found = explained(model, pruned(model, inputs, pair), inputs, target, options)
    except CompactError as error:
        return {**where, "failed": error.message.replace("\n", " ")}
    return {**where, "explanation": found.model_dump(mode="json")}


def results(given: argparse.Namespace) -> Iterator[Result]:
    """Every cell, from the folder where it is there, else made now."""
    for pair in given.pairs:
        for target in given.targets:
            file = given.out / f"{pair}-{target}.json"
            if file.is_file():
                yield json.loads(file.read_text("utf-8"))
            elif not given.table:
                print(f"{pair} on {target}", file=sys.stderr, flush=True)
                result = cell(given, pair, target)
                write_text(file, json.dumps(result, indent=1) + "\n")
                yield result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", nargs="?", default="resnet18", help="a network of timm")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--repeats", type=int, default=100, help="rounds in which both are timed")
    parser.add_argument("--out", type=Path, default=Path("runs/explain"))
    parser.add_argument("--table", action="store_true", help="print what is there, and make nothing")
    given = parser.parse_args()
    made_with = {key: getattr(given, key) for key in ("network", "size", "repeats")}
    if not given.table and (reason := differs(given.out, made_with)):
        parser.error(reason)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(HEADER, flush=True)
    for result in results(given):
        print(row(result), flush=True)


if __name__ == "__main__":
    main()
