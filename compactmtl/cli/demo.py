"""`compactmtl demo`: the whole pipeline on rendered rooms, by the commands that a user would type."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.artifacts import layout

if TYPE_CHECKING:
    from compactmtl.config import Resolved

HELP = "run the whole pipeline on rendered rooms: train, compact, export, verify, report"
EXAMPLE = """\
compactmtl demo
compactmtl demo --out runs/try train.epochs=2 --fresh"""

DENSE = "demo/dense"
COMPACT = "demo/compact"
TARGET = "onnxruntime-cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="values that override both recipes, such as train.epochs=2",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="runs/demo",
        help="folder of both runs and the report (default: runs/demo)",
    )
    parser.add_argument("--fresh", action="store_true", help="start over instead of reusing finished stages")


@dataclass(frozen=True)
class Step:
    """One command and whether its result is there already."""

    words: tuple[str, ...]
    done: Callable[[], bool]


def run(args: argparse.Namespace) -> int:
    """Run every stage that is not done; a failed gate still gets its report, then fails the command."""
    import time

    from compactmtl.errors import OK, GateError, command

    started = time.perf_counter()
    out = Path(args.out)
    steps = plan(out, args.overrides, fresh=args.fresh)
    failure: GateError | None = None
    for number, step in enumerate(steps, 1):
        if step.done():
            print(
                f"[{number}/{len(steps)}] {command(*step.words)}  (done already; --fresh starts over)",
                flush=True,
            )
            continue
        print(f"\n[{number}/{len(steps)}] {command(*step.words)}", flush=True)
        try:
            code = call(step.words)
        except GateError as error:
            failure, code = error, OK
            print(f"{error.message}; see the report", flush=True)
        if code != OK:
            return code
    print(
        f"the demo took {time.perf_counter() - started:.0f} s; open {out / layout.REPORT_PAGE} in a browser"
    )
    if failure is not None:
        raise failure
    return OK


def plan(out: Path, overrides: Sequence[str], *, fresh: bool) -> list[Step]:
    """The commands from recipes to report. Raises ConfigError where `out` holds runs of other recipes."""
    from compactmtl.config import resolve_recipe

    dense, compact = out / "dense", out / "compact"
    surgery = compact / layout.COMPACT / layout.SURGERY
    verification = compact / layout.EXPORT / TARGET / layout.VERIFICATION_FILE
    steps = [
        _training(DENSE, resolve_recipe(DENSE, overrides), dense, overrides, fresh=fresh),
        _training(COMPACT, resolve_recipe(COMPACT, overrides), compact, overrides, fresh=fresh),
        Step(("compact", str(compact)), lambda: up_to_date(surgery, weights(compact))),
        Step(
            ("export", str(compact), "--target", TARGET, "--baseline", str(dense)),
            lambda: up_to_date(verification, surgery, weights(dense)) and _passed(verification),
        ),
        Step(("report", str(compact), "--baseline", str(dense), "--out", str(out)), lambda: False),
    ]
    return steps


def _training(recipe: str, resolved: Resolved, path: Path, overrides: Sequence[str], *, fresh: bool) -> Step:
    """Train, resume an interrupted training, or nothing where the run is finished."""
    from compactmtl.errors import ConfigError
    from compactmtl.runs import Run, is_run, recipe_hash

    words = ("train", recipe, *overrides, "--out", str(path.parent), "--name", path.name)
    if not is_run(path):
        return Step(words, lambda: False)
    if fresh:
        return Step((*words, "--overwrite"), lambda: False)
    existing = Run.open(path)
    if recipe_hash(existing.recipe) != recipe_hash(resolved.recipe):
        raise ConfigError(
            f"{path} holds a run with other values than {recipe} with these overrides",
            "start over with --fresh, or choose another folder with --out",
        )
    finished = existing.finished
    return Step((*words, "--resume"), lambda: finished)


def weights(run_folder: Path) -> Path:
    """The best checkpoint's weights."""
    return run_folder / layout.CHECKPOINTS / layout.BEST / layout.WEIGHTS


def up_to_date(result: Path, *sources: Path) -> bool:
    """Whether a file is there and no source of it is newer, as make sees it."""
    if not result.exists():
        return False
    made = result.stat().st_mtime_ns
    return all(source.exists() and source.stat().st_mtime_ns <= made for source in sources)


def _passed(verification: Path) -> bool:
    from compactmtl.verify.result import Verification

    return Verification.model_validate_json(verification.read_text(encoding="utf-8")).passed


def call(words: Sequence[str]) -> int:
    """Run one verb in this process, as the command line does."""
    import importlib

    from compactmtl.cli.parser import Parser

    verb = importlib.import_module(f"compactmtl.cli.{words[0]}")
    parser = Parser(prog=f"compactmtl {words[0]}")
    verb.add_arguments(parser)
    code: int = verb.run(parser.parse_args(list(words[1:])))
    return code
