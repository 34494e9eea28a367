"""Write report.html, report.json and a preview picture for one or several runs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.artifacts.files import naming, write_bytes, write_text
from compactmtl.artifacts.layout import PREVIEW, REPORT, REPORT_PAGE, TABLE_LATEX, TABLE_MARKDOWN
from compactmtl.artifacts.lock import writing
from compactmtl.errors import DataError
from compactmtl.report.card import write_card
from compactmtl.report.collect import build_report
from compactmtl.report.delta_formats import delta_cells, latex
from compactmtl.report.html import render
from compactmtl.report.model import Report
from compactmtl.report.pictures import comparison_strip
from compactmtl.report.samples import SampleView, ValSplits, predict_samples
from compactmtl.report.table import markdown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compactmtl.report.reference import Single
    from compactmtl.runs import Run

_MOST_MODELS = 4  # columns of predictions that still fit a page


def write_report(runs: Sequence[Run], baseline: Run | Single | None, out: Path) -> Path:
    """Write `out`/report.html, report.json, delta.md, delta.tex and preview.png, and return the page's path.

    With baseline "single", the single-task runs among `runs` are what Δm is against.
    Reads what the runs' folders hold, evaluates only forms that nothing measured, and draws a few val samples.
    Raises ArtifactError for a damaged run, ConfigError where runs don't compare, OSError where `out` can't be
    written.
    """
    report, samples = collect(runs, baseline)
    return write_collected(report, samples, out)


def collect(
    runs: Sequence[Run],
    baseline: Run | Single | None,
    splits: ValSplits | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Report, list[SampleView]]:
    """The report's data and its pictures, which are only in the page. Models are evaluated on `device`."""
    splits = splits or ValSplits()
    splits.device = device
    report = build_report(runs, baseline, splits)
    try:
        against = None if isinstance(baseline, str) else baseline
        return report, predict_samples(_models(runs, against, report), splits)
    except DataError as error:
        note = f"No pictures: {error.message}"
        return report.model_copy(update={"notes": (*report.notes, note)}), []


def write_collected(report: Report, samples: Sequence[SampleView], out: Path) -> Path:
    """Write what `collect` gave. Raises HeldError where another process is writing into `out`, such as a training."""
    with naming(out), writing(out, "report"):
        return _write_collected(report, samples, out)


def _write_collected(report: Report, samples: Sequence[SampleView], out: Path) -> Path:
    write_text(out / REPORT, report.model_dump_json(indent=1) + "\n")
    if report.delta_table is not None:
        write_text(out / TABLE_MARKDOWN, markdown(delta_cells(report)) + "\n")
        write_text(out / TABLE_LATEX, latex(report) + "\n")
    if samples:
        few = samples[:2] if any(task.dense for task in samples[0].tasks) else samples
        buffer = io.BytesIO()
        comparison_strip(few).save(buffer, format="PNG", optimize=True)
        write_bytes(out / PREVIEW, buffer.getvalue())
    else:
        (out / PREVIEW).unlink(missing_ok=True)  # of an earlier report, whose pictures these are not
    for run in report.runs:
        if Path(run.path).resolve() == out.resolve():  # other runs' folders are left alone
            write_card(run, report)
    write_text(out / REPORT_PAGE, render(report, samples))
    return out / REPORT_PAGE


def _models(runs: Sequence[Run], baseline: Run | None, report: Report) -> list[tuple[str, nn.Module, Run]]:
    """Models to picture: the baseline (or the first run as trained), then each run's smallest form."""
    views = {view.path: view for view in report.runs}
    models: list[tuple[str, nn.Module, Run]] = []
    if baseline is not None:
        models.append((views[str(baseline.path)].name, baseline.load_plain(), baseline))
    for run in runs:
        if str(run.path) not in views or (
            baseline is not None and run.path.resolve() == baseline.path.resolve()
        ):
            continue
        view = views[str(run.path)]
        if view.name in report.single_task_runs:
            continue
        if view.surgery is None:
            models.append((view.name, run.load_plain(), run))
        else:
            lead = "" if len(runs) == 1 else f"{view.name}, "
            if baseline is None:
                models.append((f"{lead}trained", run.load_plain(), run))
            label = f"{lead}compact" if baseline is None else view.name
            models.append((label, run.load_compact(), run))
        if len(models) >= _MOST_MODELS:
            break
    return models
