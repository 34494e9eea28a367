"""What a report says, as data: report.json is this model, report.html its rendering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import computed_field, model_validator

from compactmtl.export.kit.files import DeviceRecord
from compactmtl.report.budget import Budget
from compactmtl.report.interface import Interface
from compactmtl.report.read import Epoch, Importance, Surgery
from compactmtl.report.rows import DeltaTable, Frozen, SweepView
from compactmtl.verify.gates import BASELINE
from compactmtl.verify.result import GateResult, TaskMetrics, Verification
from compactmtl.verify.speed import is_lowered


class MetricView(Frozen):
    """How to read one metric."""

    higher_is_better: bool
    unit: str = ""
    share: bool = False
    gain: bool = True  # counts in Δm, and is a column of the papers' tables


class TaskView(Frozen):
    """One task as the report names it."""

    name: str
    kind: str
    primary: str
    metrics: dict[str, MetricView]
    wrong: str = ""  # when a single prediction is called wrong


class Size(Frozen):
    """Cost of one model at the recipe's input size."""

    parameters: int
    macs: int


Form = Literal["trained", "compact", "exported"]


class StageKey(NamedTuple):
    """Which stage of a run's model: its form and, of an exported one, the target."""

    form: Form
    target: str | None = None

    @property
    def label(self) -> str:
        """For people, such as "exported, onnxruntime-cpu"."""
        return self.form if self.target is None else f"{self.form}, {self.target}"


class Stage(Frozen):
    """One form of a run's model and its metrics over the val split; `target` is that of an exported one.

    `metrics` is none where the form exists but was not measured, `note` then says why.
    """

    form: Form
    target: str | None = None
    size: Size | None
    metrics: TaskMetrics | None
    delta_m: float | None = None
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _read_label(cls, values: Any) -> Any:
        """Files hold the label beside the target; those of earlier versions hold the label alone."""
        if not isinstance(values, dict) or "label" not in values:
            return values
        label = str(values["label"])
        found = {key: value for key, value in values.items() if key != "label"}
        if values.get("form") == "exported":
            found.setdefault("target", label.partition(", ")[2])
        return found

    @property
    def key(self) -> StageKey:
        return StageKey(self.form, self.target)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        """The stage for people."""
        return self.key.label


class ExportView(Frozen):
    """One export and what verification found; `own`: of a network or file of the user's, which is of no run."""

    target: str
    verification: Verification
    interface: Interface | None = None  # none: of a report that an earlier version wrote
    own: bool = False

    @property
    def stage(self) -> StageKey:
        """The stage that it makes of its run's model."""
        return StageKey("exported", self.target)

    @property
    def holds(self) -> bool:
        """Whether every gate held, and there was one."""
        gates = self.verification.gates
        return self.verification.passed and bool(gates) and all(gate.passed for gate in gates)

    @property
    def bounds_accuracy(self) -> bool:
        """Whether a gate bounds the tasks' metrics."""
        return any(gate.gate == "accuracy" for gate in self.verification.gates)


def is_against_baseline(gate: GateResult) -> bool:
    """Whether a gate bounds what was lost to the dense baseline."""
    # files of older versions say it in the message alone
    return gate.gate == "accuracy" and (gate.against == BASELINE or f"of {BASELINE}," in gate.message)


class PreparedView(Frozen):
    """A target that the run was prepared for and not run on, and what was missing."""

    target: str
    reason: str
    built: str = ""  # for the device that is missing, in words


class DeviceView(Frozen):
    """What a device kit of one target found on a device."""

    target: str
    record: DeviceRecord


class Provenance(Frozen):
    """Where a run comes from and how to make it again."""

    recipe: str
    seed: int
    created: str
    versions: dict[str, str]
    commands: tuple[str, ...]


class PseudoLabelView(Frozen):
    """Labels that a teacher gave training images which had none: of `samples`, those known without it and those it labeled."""

    task: str
    teacher: str
    bound: str
    samples: int
    known: int
    filled: int


class TeacherView(Frozen):
    """A run that another learned from: the folder, and epochs and seconds of its own training."""

    path: str
    epochs: int
    seconds: float


class RunView(Frozen):
    """Everything the report says of one run; of a bundle alone, what the bundle knows.

    `data` is the data set by name, empty where only the bundle is there. `images` is what an image is: gray, RGB, RGBA or,
    of 5 bands, `5-band`; `inputs` are the names of what the network takes, where the recipe names several.
    """

    name: str
    path: str
    description: str
    data: str
    images: str = "RGB"
    inputs: tuple[str, ...] = ()
    input_size: tuple[int, int]
    stages: tuple[Stage, ...]
    surgery: Surgery | None
    exports: tuple[ExportView, ...]
    prepared: tuple[PreparedView, ...] = ()
    devices: tuple[DeviceView, ...] = ()
    epochs: tuple[Epoch, ...]
    best_epoch: int | None
    finished: bool
    seconds: float | None
    provenance: Provenance
    targets: tuple[str, ...] = ()  # that the recipe names, in its order
    budget: Budget | None = None  # none: the recipe asks for no sparsity
    pseudo_labels: tuple[PseudoLabelView, ...] = ()
    importance: Importance | None = (
        None  # none: training did not look at what channels are worth to each task
    )
    teachers: tuple[TeacherView, ...] | None = ()  # none: it has some, and what they cost is unknown

    @property
    def split(self) -> str:
        """The images that metrics are measured on."""
        return f"val split of {self.data}" if self.data else "run's val split"

    @property
    def all_epochs(self) -> int | None:
        """Epochs of its training and of its teachers'."""
        if self.teachers is None:
            return None
        return len(self.epochs) + sum(one.epochs for one in self.teachers)

    @property
    def all_seconds(self) -> float | None:
        """Seconds of its training and of its teachers', validation apart."""
        if self.teachers is None or self.seconds is None:
            return None
        return self.seconds + sum(one.seconds for one in self.teachers)

    @property
    def trained(self) -> Stage:
        """The dense form: what training left, contracted."""
        return self.stages[0]

    @property
    def current_exports(self) -> tuple[ExportView, ...]:
        """The exports of the model that the run holds now."""
        return tuple(one for one in self.exports if self.measured(one.stage) is not None)

    @property
    def shown_export(self) -> ExportView | None:
        """The export whose figures stand for the run, by `shown_target`; `Deployments` has all targets."""
        target = shown_target([self])
        return next((one for one in self.exports if one.target == target), None)

    @property
    def final(self) -> Stage:
        """The shown export's form, else the last one before it that has metrics, else the trained one."""
        return shown_stages([self])[0]

    def measured(self, key: StageKey) -> Stage | None:
        """The stage of this key, where it has metrics."""
        return next((one for one in self.stages if one.key == key and one.metrics is not None), None)

    @property
    def smallest(self) -> Size | None:
        """Size of the model that would be deployed."""
        sizes = [stage.size for stage in self.stages if stage.size is not None]
        return sizes[-1] if sizes else None


def shown_target(runs: Sequence[RunView]) -> str | None:
    """The target whose figures stand for runs of one recipe; none where no target is fit for all of them.

    Fit is one for which each run has an export of the model that it holds now, all of whose gates held. Of these one
    in float32, where dense and compact differ by nothing but surgery; then the recipe's order decides, then the name.
    """
    fit = [{one.target: one for one in run.current_exports if one.holds} for run in runs]
    common = [target for target in fit[0] if all(target in others for others in fit)]
    order = list(runs[0].targets)

    def rank(target: str) -> tuple[bool, int]:
        lowered = any(is_lowered(exports[target].verification.latency) for exports in fit)
        return lowered, order.index(target) if target in order else len(order)

    return min(common, key=rank, default=None)


def shown_stages(runs: Sequence[RunView]) -> list[Stage]:
    """Each run's form that stands for it, the same for all: an export of `shown_target`, else the furthest before.

    As trained where they have no other measured form in common.
    """
    target = shown_target(runs)
    keys = [StageKey("exported", target)] if target is not None else []
    keys += [stage.key for stage in reversed(runs[0].stages) if stage.form != "exported"]
    for key in keys:
        measured = [run.measured(key) for run in runs]
        complete = [stage for stage in measured if stage is not None]
        if len(complete) == len(runs):
            return complete
    return [run.trained for run in runs]


class Report(Frozen):
    """report.json. `baseline` names one of `runs`, always as trained; Δm is against `delta_reference`.

    `single_task_runs` names those of `runs` that Δm is against as single-task networks.
    """

    version: Literal[1] = 1
    created: str
    tasks: tuple[TaskView, ...]
    baseline: str | None
    delta_reference: str | None
    runs: tuple[RunView, ...]
    single_task_runs: tuple[str, ...] = ()
    delta_table: DeltaTable | None = None
    sweep: SweepView | None = None
    notes: tuple[str, ...] = ()

    @property
    def baseline_run(self) -> RunView | None:
        """The run that others are held against, where one was named."""
        return next((run for run in self.runs if run.name == self.baseline), None)

    @property
    def gates(self) -> tuple[int, int]:
        """Gates that passed and all gates, over every export of the subjects."""
        results = [
            gate for run in self.subjects for export in run.exports for gate in export.verification.gates
        ]
        return sum(gate.passed for gate in results), len(results)

    @property
    def subjects(self) -> tuple[RunView, ...]:
        """The runs that the report is about."""
        return tuple(
            run for run in self.runs if run.name != self.baseline and run.name not in self.single_task_runs
        )
