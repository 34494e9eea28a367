"""One data model of what runs became; HTML, JSON, tables and pictures from it."""

from compactmtl.report.bundles import write_bundle_report
from compactmtl.report.collect import build_report
from compactmtl.report.delta_formats import delta_cells, latex
from compactmtl.report.model import Report
from compactmtl.report.pictures import comparison_strip
from compactmtl.report.samples import SampleView, TaskSample, View
from compactmtl.report.table import comparison, markdown, plain
from compactmtl.report.write import collect, write_collected, write_report

__all__ = [
    "Report",
    "SampleView",
    "TaskSample",
    "View",
    "build_report",
    "collect",
    "comparison",
    "comparison_strip",
    "delta_cells",
    "latex",
    "markdown",
    "plain",
    "write_bundle_report",
    "write_collected",
    "write_report",
]
