"""What `export --prepare` does for a target that can't run here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from compactmtl.config.target import Target
    from compactmtl.export.prepare import Prepared
    from compactmtl.runs import Run


def prepare_missing(
    run: Run, name: str, target: Target, progress: Callable[[str], None], device: torch.device
) -> Prepared | None:
    """Prepare the target where its backend can't run here; None where it can."""
    from compactmtl.backends import get_backend
    from compactmtl.export.prepare import prepare_run

    if get_backend(target.backend).availability(target).available:
        return None
    prepared = prepare_run(run, name, target, progress=progress, device=device)
    print("\n".join(summary(prepared)))
    print(f"prepared, {prepared.status}: {run.path / 'export' / name}\n")
    return prepared


def summary(prepared: Prepared) -> Iterator[str]:
    """What is there and what is not, in lines for a terminal."""
    from compactmtl.export.prepare import graph_failures

    yield f"not run here: {prepared.reason}"
    if prepared.built:
        yield f"built: {prepared.built}"
    if prepared.graph is None:
        yield f"graph: {prepared.graph_note}"
    else:
        from compactmtl.verify.gates import parity_message

        yield from (f"graph: {parity_message(output)}" for output in prepared.graph.outputs)
        yield f"graph: {prepared.graph_note}"
    yield from (f"  failed: {failure}" for failure in graph_failures(prepared))
    for command in prepared.commands:
        yield f"command: {command}"


def raise_missing(prepared: dict[str, Prepared], *, wanted: bool = False) -> None:
    """Raise MissingDependencyError naming what the prepared targets lack; return where there are none.

    So too where that was `wanted`, as for a device kit: another machine is to run them.
    Raises GateError instead where a graph is wrong already on the CPU: no other machine will mend it.
    """
    from compactmtl.errors import GateError, MissingDependencyError
    from compactmtl.export.prepare import graph_failures

    failed = {name: failures for name, one in prepared.items() if (failures := graph_failures(one))}
    if failed:
        raise GateError(
            "prepared, not run: the graph fails on the CPU already: "
            + "; ".join(f"{name}: {', '.join(failures)}" for name, failures in failed.items()),
            "change the model, or what the target keeps in float32, before you use the device",
        )
    if prepared and not wanted:
        first = next(iter(prepared.values()))
        raise MissingDependencyError(
            f"prepared, {first.status}: {', '.join(prepared)}: {first.reason}",
            "copy the folder to a machine that has it and run its command there, or export there",
        )
