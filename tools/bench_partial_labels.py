"""Whether faces that are labeled for one task each train all three tasks as well as a network for each task does.

    python -m tools.bench_partial_labels --root /data/UTKFace --out runs/partial-labels

Makes data sets of links to the faces of `--root`: in one, every face of train is labeled for age, gender or ethnicity alone, a third
each; the three others have one of these thirds and its task. Val has all labels. Then, for each seed, one network of the three tasks is
trained on the first, and one network for each task on the others, all for the same epochs, so that each sees each label equally often.
The epoch is chosen on a tenth of train. Prints one table of Markdown; the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.run_folder import is_run
from compactmtl.config import Resolved, resolve_recipe
from compactmtl.data.utkface import ETHNICITIES, GENDERS, Face, list_split
from compactmtl.errors import TrainingError
from compactmtl.train import train

TASKS = {"age": ("mae", "years"), "gender": ("accuracy", "%"), "ethnicity": ("accuracy", "%")}
TARGETS = {
    "age": {"kind": "scalar", "unit": "years"},
    "gender": {"kind": "class", "classes": list(GENDERS)},
    "ethnicity": {"kind": "class", "classes": list(ETHNICITIES)},
}
HEADER = """\
| network | seed | age, MAE years | gender, % | ethnicity, % |
| --- | ---: | ---: | ---: | ---: |"""

Values = dict[str, float]


def task_of(face: Face) -> str:
    """The one task that a face of train is labeled for; by its name, so that every machine has the same thirds."""
    digest = hashlib.sha256(face.path.name.encode()).digest()
    return list(TASKS)[int.from_bytes(digest[:4], "big") % len(TASKS)]


def label(face: Face, task: str) -> str:
    """A cell of a task's table."""
    return {
        "age": str(face.age),
        "gender": GENDERS[face.gender],
        "ethnicity": ETHNICITIES[face.ethnicity],
    }[task]


def write_data(root: Path, folder: Path, tasks: Iterable[str]) -> Path:
    """A `folder` data set of `tasks`, in which a face of train is labeled for one task alone. Faces are links."""
    names, rows = tuple(tasks), {task: [("image", "value")] for task in tasks}
    for split in ("train", "val"):
        for face in list_split(str(root), split).faces:
            known = [task for task in names if split == "val" or task_of(face) == task]
            if known:
                link = folder / "images" / split / face.path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(face.path.resolve())
            for task in known:
                rows[task].append((f"{split}/{face.path.name}", label(face, task)))
    for task, table in rows.items():
        with (folder / f"{task}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)
    write_text(folder / "dataset.yaml", json.dumps({"targets": {task: TARGETS[task] for task in names}}))
    return folder


def recipe_of(given: argparse.Namespace, data: Path, tasks: Iterable[str], seed: int) -> Resolved:
    """The recipe of one run."""
    kept = set(tasks)
    return resolve_recipe(
        "utkface/small",
        [
            "data.name=folder",
            f"data.root={data}",
            "data.holdout=0.1",
            "data.select_on=holdout",
            f"train.epochs={given.epochs}",
            f"seed={seed}",
            *(f"tasks.{task}=null" for task in TASKS if task not in kept),
            *given.overrides,
        ],
    )


def values_of(resolved: Resolved, folder: Path) -> Values:
    """Val's metrics of the run in `folder`, which is trained, or trained to its end, where it has none."""
    run = train(resolved, folder, resume=is_run(folder), console=Console(stderr=True))
    found = run.val
    if found is None:
        raise TrainingError(f"{folder}: the run has no metrics of val", "run the same command again")
    return {task: found[task][TASKS[task][0]] for task in resolved.recipe.tasks}


def line(name: str, seed: str, values: Mapping[str, str]) -> str:
    """One row of the table."""
    return f"| {name} | {seed} | " + " | ".join(values[task] for task in TASKS) + " |"


def shown(task: str, value: float) -> str:
    """A metric as the table has it."""
    return f"{value:.2f}" if TASKS[task][1] == "years" else f"{value:.1%}".removesuffix("%")


def summary(task: str, values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{shown(task, statistics.fmean(values))} ± {shown(task, spread)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="of every recipe")
    parser.add_argument("--root", type=Path, required=True, help="the folder UTKFace, with train/ and val/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/partial-labels"))
    given = parser.parse_args()
    joint = write_data(given.root, given.out / "data" / "all", TASKS)
    single = {task: write_data(given.root, given.out / "data" / task, [task]) for task in TASKS}
    found: dict[str, list[Values]] = {"one for all tasks": [], "one for each task": []}
    print(HEADER, flush=True)
    for seed in given.seeds:
        both = {
            "one for all tasks": values_of(
                recipe_of(given, joint, TASKS, seed), given.out / f"all-seed{seed}"
            ),
            "one for each task": {
                task: values_of(recipe_of(given, data, [task], seed), given.out / f"{task}-seed{seed}")[task]
                for task, data in single.items()
            },
        }
        for name, values in both.items():
            found[name].append(values)
            print(line(name, str(seed), {task: shown(task, values[task]) for task in TASKS}), flush=True)
    for name, seeds in found.items():
        whole = {task: summary(task, [one[task] for one in seeds]) for task in TASKS}
        print(line(f"**{name}**", f"{len(seeds)}, mean ± deviation", whole), flush=True)


if __name__ == "__main__":
    main()
