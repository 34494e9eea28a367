"""What `export --prepare` does for a target that can't run here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compactmtl.config.target import Target
    from compactmtl.export.prepare import Prepared
    from compactmtl.train import Run


def prepare_missing(run: Run, name: str, target: Target, progress: Callable[[str], None]) -> Prepared | None:
    """Prepare the target where its backend can't run here; None where it can."""
    from compactmtl.backends import get_backend
    from compactmtl.export.prepare import prepare_run

    if get_backend(target.backend).availability(target).available:
        return None
    found = prepare_run(run, name, target, progress=progress)
    print("\n".join(summary(found)))
    print(f"prepared, not run: {run.path / 'export' / name}\n")
    return found


def summary(found: Prepared) -> Iterator[str]:
    """What is there and what is not, in lines for a terminal."""
    yield f"not run here: {found.reason}"
    if found.graph is None:
        yield f"graph: {found.graph_note}"
    else:
        worst = max(found.graph.outputs, key=lambda one: one.max_relative)
        verdict = "within" if found.graph.passed else "BEYOND"
        yield (
            f"graph: largest difference to torch {worst.max_relative:.1e} of the range ({worst.name}),"
            f" {verdict} tolerance; {found.graph_note}"
        )
    for command in found.commands:
        yield f"command: {command}"


def raise_missing(prepared: dict[str, Prepared]) -> None:
    """Raise MissingDependencyError naming what the prepared targets lack; return where there are none."""
    from compactmtl.errors import MissingDependencyError

    if prepared:
        first = next(iter(prepared.values()))
        raise MissingDependencyError(
            f"prepared and not run: {', '.join(prepared)}: {first.reason}",
            "take the folder to a machine that has it, and export there, or run its command",
        )
