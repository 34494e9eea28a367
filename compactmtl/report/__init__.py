"""One data model of what runs became; HTML, JSON, tables and pictures from it."""

from compactmtl.report.collect import build_report
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
    "markdown",
    "plain",
    "write_collected",
    "write_report",
]
