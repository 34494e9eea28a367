"""What it cost to fold the batch norm's statistics of several data sets into one, as a note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compactmtl.report import format as fmt
from compactmtl.report.model import MetricView
from compactmtl.report.read import Epoch

if TYPE_CHECKING:
    from compactmtl.tasks.base import Task


def folding_notes(
    name: str, epochs: Sequence[Epoch], best: int | None, tasks: Mapping[str, Task]
) -> list[str]:
    """Each task's primary metric of the best epoch, with each source's own statistics and folded; none of other runs."""
    chosen = next((epoch for epoch in epochs if epoch.epoch == best), None)
    if chosen is None or chosen.batch_norm is None:
        return []
    own, parts = chosen.batch_norm.own_statistics, []
    for task, one in tasks.items():
        if one.primary in own.get(task, {}) and one.primary in chosen.val.get(task, {}):
            info = _view(one.metric_info[one.primary])
            before, after = own[task][one.primary], chosen.val[task][one.primary]
            parts.append(
                f"{task} {fmt.metric_name(one.primary)} {fmt.metric(before, info)} → {fmt.metric(after, info)}"
            )
    return [f"{name}: batch norm of several data sets, statistics of each → folded: {', '.join(parts)}"]


def _view(info: Any) -> MetricView:
    return MetricView(
        higher_is_better=info.higher_is_better, unit=info.unit, share=info.share, gain=info.gain
    )
