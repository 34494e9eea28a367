"""Whether what `compactmtl tasks` says of each task is what leaves when the task is taken out.

python -m tools.bench_task_costs RUN [--target onnxruntime-cpu]

For each task the table's MACs and milliseconds beside those of the run without it, made anew from the trained network as
`compactmtl compact RUN --tasks` makes it, exported, and timed in the same rounds as the whole network and the others; with the
largest difference of an output that stays, in float64. RUN has to be compacted.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.artifacts.told import tell
from compactmtl.backends import get_backend, load_target
from compactmtl.config.target import Target
from compactmtl.export.artifact import ArtifactWriter
from compactmtl.export.task_costs import TaskCosts, task_costs
from compactmtl.graph import cost
from compactmtl.runs import Run, compact_run, subset_run
from compactmtl.verify.latency import measure_latency

WHOLE = "whole"


def main() -> None:
    """Print a row for each task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--target", default="onnxruntime-cpu")
    args = parser.parse_args()
    run, target = Run.open(args.run), load_target(args.target)
    table = task_costs(run, target, progress=tell)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compactmtl-")))
        parts = {task: _without(run, task, folder / task) for task in run.tasks}
        found = _milliseconds(run, parts, target, folder, stack)
        print(_rows(run, parts, table, found))


def _without(run: Run, task: str, path: Path) -> Run:
    rest = subset_run(run, [name for name in run.tasks if name != task], path)
    compact_run(rest)
    return rest


def _milliseconds(
    run: Run, parts: dict[str, Run], target: Target, folder: Path, stack: ExitStack
) -> dict[str, float]:
    """Median milliseconds of each run's compact network, all in the same rounds."""
    runners, inputs = {}, None
    for name, one in {WHOLE: run, **parts}.items():
        examples = one.example_inputs(target.latency.batch)
        writer = ArtifactWriter(one, target, examples if one.recipe.data.inputs else examples[0])
        path = folder / "files" / name / MODEL_FILE
        writer.write(one.load_compact(), path)
        runners[name] = stack.enter_context(get_backend(target.backend).open(path, target))
        inputs = writer.inputs
    timing = target.latency
    result = measure_latency(
        runners, inputs, warmup=timing.warmup, repeats=timing.repeats, settle=timing.settle
    )
    return {name: stats.median_ms for name, stats in result.stats.items()}


def _rows(run: Run, parts: dict[str, Run], table: TaskCosts, found: dict[str, float]) -> str:
    inputs = run.example_inputs()
    whole = cost(run.load_compact(), inputs).macs
    lines = [
        "| without | MACs less by the table | found | ms less by the table | found | found / table | outputs differ by |"
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in table.tasks:
        rest = parts[row.task]
        macs = whole - cost(rest.load_compact(), inputs).macs
        less = found[WHOLE] - found[row.task]
        lines.append(
            f"| {row.task} | {row.macs:,} | {macs:,} | {row.milliseconds:.3f} | {less:.3f} | {less / row.milliseconds:.2f}"
            f" | {_difference(run, rest):.1e} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def _difference(run: Run, rest: Run) -> float:
    """The largest difference of an output that stays over the largest value of that output, in float64."""
    inputs = tuple(one.double() for one in run.example_inputs(2))
    whole, part = run.load_plain().double()(*inputs), rest.load_compact().double()(*inputs)
    return max(float((whole[name] - part[name]).abs().max() / whole[name].abs().max()) for name in part)


if __name__ == "__main__":
    main()
