"""From a trained run to its compact model: contract, remove, prove, and write runs/<name>/compact/."""

from __future__ import annotations

from compactmtl.artifacts.files import new_folder
from compactmtl.artifacts.layout import BEST, CHECKPOINTS, COMPACT
from compactmtl.artifacts.lock import exclusive
from compactmtl.backends import surgery_align
from compactmtl.models import OwnModel
from compactmtl.runs.checkpoint import checked_weights
from compactmtl.runs.run import Run
from compactmtl.sparsity import LatencyTable
from compactmtl.surgery import CompactResult, compact, save_compact


@exclusive("compact")
def compact_run(
    run: Run,
    align: int | None = None,
    gather: bool = False,
    join: bool = True,
    table: LatencyTable | None = None,
) -> CompactResult:
    """Compact the run's best checkpoint and write the result into the run; an older one is replaced.

    `align` keeps channel counts at multiples of it; by default what the recipe's `surgery.align` comes to.
    `gather` lets layers pick the channels that they need where their neighbors keep more. `join` makes one layer of layers in a
    row where that has fewer MACs. `table` is a latency table of the run's network: what would be slower stays.

    Raises ConfigError where the table is of another network, ArtifactError where the run has no checkpoint, SurgeryError where
    the network can't be edited, HeldError where another process is writing into the run.
    """
    model = run.load_plain()
    inputs = run.example_inputs((table.batch if table is not None else None) or 1)
    multiple = align if align is not None else surgery_align(run.recipe).channels
    chosen: tuple[str, ...] = ()
    if isinstance(model, OwnModel) and len(run.tasks) < len(run.trained_tasks):
        # Its forward computes every output: surgery finds what the others alone read.
        model.keep_tasks(run.trained_tasks)
        chosen = tuple(run.tasks)
    result = compact(
        model,
        inputs,
        align=multiple,
        gather=gather,
        unreached=run.recipe.surgery.unreached,
        outputs=chosen,
        join=join,
        table=table,
    )
    sources = {"checkpoint": checked_weights(run.path / CHECKPOINTS / BEST)}
    with new_folder(run.path / COMPACT) as folder:
        save_compact(result, folder, sources=sources)
    return result
