"""What device kits found: a row for each target and device, in the report and the model card."""

from __future__ import annotations

from pathlib import Path

from compactmtl.artifacts.layout import DEVICES, EXPORT
from compactmtl.export.kit.files import DeviceRecord, read_records
from compactmtl.report import format as fmt
from compactmtl.report.gates import kind_of
from compactmtl.report.model import DeviceView, Report, TaskView
from compactmtl.report.table import MISSING, Cell, Row, Table, speed_cell
from compactmtl.verify.speed import dense_form, subject_latency

COLUMNS = (
    "gates",
    "runs on",
    "precision",
    "accuracy on its images",
    "latency, median ↓",
    "against dense fp32",
    "throttling",
)


def device_views(run: Path) -> tuple[DeviceView, ...]:
    """What devices found of a run's bundles. Raises ArtifactError for a record that is damaged or was exchanged."""
    return tuple(
        DeviceView(target=folder.parent.name, record=record)
        for folder in sorted((run / EXPORT).glob(f"*/{DEVICES}"))
        for record in read_records(folder.parent)
    )


def held_back_notes(name: str, views: tuple[DeviceView, ...]) -> list[str]:
    """What a reader of the devices' latencies has to know."""
    return [
        f"{name}: {view.record.name} held itself back while {view.target} was measured on it"
        f" ({'; '.join(view.record.held_back)}): its latencies are not those of a cool device"
        for view in views
        if view.record.held_back
    ]


def device_table(report: Report) -> Table | None:
    """A row for each device and target of the report's subjects; none where no device was collected."""
    runs = report.subjects
    tasks = {task.name: task for task in report.tasks}
    rows = []
    for run in runs:
        for view in run.devices:
            label = f"{view.record.name}, {view.target}"
            rows.append(
                Row(label if len(runs) == 1 else f"{run.name} on {label}", _cells(view.record, tasks))
            )
    if not rows:
        return None
    caption = (
        "measured on the device by its kit; accuracy is that of the images in the kit, torch's on the same images in "
        "brackets; a ratio is the median over rounds of the ratio in one round"
    )
    return Table(COLUMNS, tuple(rows), caption)


def _cells(record: DeviceRecord, tasks: dict[str, TaskView]) -> tuple[Cell, ...]:
    _, stats = subject_latency(record.latency)
    threads = "" if stats.threads is None else f", {stats.threads} thread{'s' * (stats.threads != 1)}"
    layers = ", ".join(f"{count} layers {kind}" for kind, count in sorted(stats.layers.items()))
    return (
        _gates(record),
        Cell(f"{record.device}, {stats.backend} {stats.version} ({stats.provider}{threads})"),
        Cell(f"{stats.precision}: {layers}" if layers else stats.precision),
        _accuracy(record, tasks),
        Cell(fmt.milliseconds(stats.median_ms)),
        speed_cell(record.latency, dense_form(record.latency)),
        _throttling(record),
    )


def _gates(record: DeviceRecord) -> Cell:
    kinds = list(dict.fromkeys(kind_of(gate) for gate in record.gates))
    failed = [gate for gate in record.gates if not gate.passed]
    if failed or not record.passed:
        names = ", ".join(dict.fromkeys(kind_of(gate) for gate in failed))
        return Cell(f"{len(failed)} of {len(record.gates)} gates failed: {names}", "bad")
    bounded = any(gate.gate == "accuracy" for gate in record.gates)
    return Cell(f"held: {', '.join(kinds)}", "good" if bounded else "")


def _accuracy(record: DeviceRecord, tasks: dict[str, TaskView]) -> Cell:
    """Each task's primary metric on the device and by torch, on the same images."""
    if record.accuracy is None:
        why = record.not_run.get("accuracy", "")
        return Cell(f"{fmt.NOT_RUN}: {why}", "missing") if why else MISSING
    told = []
    for name, metrics in record.accuracy.artifact.items():
        if name in tasks and (primary := tasks[name].primary) in metrics:
            info = tasks[name].metrics[primary]
            torch = record.accuracy.torch.get(name, {}).get(primary)
            beside = "" if torch is None else f" ({fmt.metric(torch, info)})"
            told.append(f"{name} {fmt.metric_name(primary)} {fmt.metric(metrics[primary], info)}{beside}")
    count = record.accuracy.samples
    return Cell(f"{', '.join(told)}; {count} image{'s' * (count != 1)}")


def _throttling(record: DeviceRecord) -> Cell:
    if record.held_back is None:
        return Cell("the device does not tell", "missing")
    return Cell("; ".join(record.held_back), "bad") if record.held_back else Cell("none seen")
