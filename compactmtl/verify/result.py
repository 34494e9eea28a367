"""What verification found, as data: parity, accuracy, latency and gates of one artifact."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict, Field

from compactmtl.backends.base import LayerTime
from compactmtl.backends.memory import Memory
from compactmtl.config.recipe import Frozen

TaskMetrics = dict[str, dict[str, float]]  # task -> metric -> value

CONSTANT = 1e-2  # of the range: what changes by less than this either way is no function of the image


JUDGING = ("parity", "accuracy")  # kinds of gates that look at what a model gives

SINGLE = " fp32"  # follows an artifact's name for its float32 form, timed beside one of lower precision


class Record(Frozen):
    """A part of a result. A value that is no number is the JSON string "NaN", "Infinity" or "-Infinity"."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class OutputParity(Record):
    """One output of the artifact against the torch model's."""

    name: str
    shape: tuple[int, ...]
    max_abs: float
    max_relative: float  # max_abs / scale; of classes the share that differs
    scale: float | None = (
        None  # max - min of the reference over all inputs, at least 1 % of its largest magnitude; none: of an older file
    )
    cosine: float
    tolerance: float
    passed: bool
    variation: float | None = (
        None  # largest change of one value from sample to sample, on the scale of max_relative; none: not known
    )

    @property
    def blind(self) -> bool:
        """Whether an artifact that gives the same for every input would be within tolerance too.

        A tolerance that is wider on purpose is believed, unless the output is a constant to within rounding.
        """
        if self.variation is None or math.isinf(self.tolerance):
            return False
        return self.variation / 2 <= min(self.tolerance, CONSTANT)


class ParityResult(Record):
    """Names, shapes and values of every output, over all inputs tried."""

    outputs: tuple[OutputParity, ...]
    samples: int
    passed: bool


class AccuracyResult(Record):
    """The tasks' own metrics over the val split; `baseline` is the dense run where one was given."""

    samples: int  # 0: nothing was measured, of a module whose user gave no metric
    torch: TaskMetrics
    artifact: TaskMetrics
    baseline: TaskMetrics | None = None
    by_batch: dict[int, TaskMetrics] = Field(default_factory=dict)  # the artifact's, where its batch is free
    # Of metrics that no kind of task defines: whether more is better, by task and metric.
    higher_is_better: dict[str, dict[str, bool]] = Field(default_factory=dict)


class LatencyStats(Record):
    """One model's wall-clock latencies in milliseconds, none dropped."""

    name: str
    batch: int
    samples_ms: tuple[float, ...]
    min_ms: float
    median_ms: float
    p90_ms: float
    p99_ms: float
    variation: float  # distance of the quartiles / median
    backend: str
    version: str
    provider: str
    device: str
    precision: str
    threads: int | None
    includes_transfers: bool
    process_ms: float | None = None  # median of the processor time of all threads in one run
    layers: dict[str, int] = Field(default_factory=dict)  # layers with weights by the precision they run in


Verdict = Literal["faster", "slower", "same", "unknown"]


class Speed(Record):
    """How much faster one model is than another; a ratio below 1 is slower."""

    name: str
    against: str
    ratio: float  # median over rounds of the latency of `against` over this one's in the same round; of 0 rounds: ratio of medians
    low: float | None = None  # 10th percentile over rounds; none: too few
    high: float | None = None  # 90th
    rounds: int  # 0: the latencies were not taken in the same rounds
    verdict: (
        Verdict  # same: the band holds 1, so the difference is no more than noise; unknown: there is no band
    )


class LatencyResult(Record):
    """Latencies measured paired and interleaved in one process, ratios of medians to `reference`, and what they tell."""

    reference: str
    stats: dict[str, LatencyStats]
    speedup: dict[str, float]  # median of the reference / median of this one
    paired_speedup: dict[str, float] = Field(
        default_factory=dict
    )  # median over rounds of reference / this one in the same round
    speeds: tuple[Speed, ...] = ()  # of each against the reference, and against float32 forms beside it
    warmup: int = 0  # rounds before the clock counted
    settle: int = 0  # runs of a model before each of its clocked ones
    load_average: float | None = None  # runnable processes on the machine over the minute before


class PhaseTimes(Record):
    """Medians over runs by the GPU's own clock, in milliseconds."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float
    samples: tuple[tuple[float, float, float], ...] = ()  # copy in, compute, copy out of every run


class Measured(Record):
    """What was measured of one model beside its latency. A part that is None is in `not_run` with the reason."""

    megabytes: float
    throughput: dict[int, float]  # samples a second by batch size
    memory: Memory | None = None
    layers: tuple[LayerTime, ...] | None = None
    phases: PhaseTimes | None = None
    energy_mj: float | None = None
    not_run: dict[str, str] = Field(default_factory=dict)


class SubjectProfile(Measured):
    """The same of a model file."""

    path: str
    sha256: str
    target: str
    note: str = ""  # what a reader of its figures has to know


class Profile(Record):
    """profile.json: models side by side. Latency is paired; throughput is paired at each batch size."""

    version: Literal[1] = 1
    latency: LatencyResult
    subjects: dict[str, SubjectProfile]
    versions: dict[str, str]
    created: str


class ErrorMap(Record):
    """Where in one image an output of the artifact differs from the torch model's, as a picture in the bundle."""

    file: str  # 8-bit gray PNG; white is `largest`, black no difference
    largest: float  # |difference|, the largest of all channels at a pixel
    relative: float  # that on parity's scale; of classes the share of pixels that differ


class GateResult(Record):
    """One bound and whether it held."""

    gate: Literal[
        "parity", "accuracy", "latency", "not_slower", "size", "types"
    ]  # types: of a device's own layers
    subject: str  # task, task.metric or model
    against: str = ""  # what an accuracy or a speed was held against, such as torch or the baseline
    bound: float
    value: float
    passed: bool
    warning: bool = False  # it holds, but noise may hide that it does not
    message: str


class Verification(Record):
    """verification.json of a bundle."""

    version: Literal[1] = 1
    target: str
    bundle_sha256: str
    parity: ParityResult
    accuracy: AccuracyResult
    latency: LatencyResult
    measured: dict[str, Measured] = Field(default_factory=dict)  # by the latency's names
    error_maps: dict[str, ErrorMap] = Field(default_factory=dict)  # of outputs that are maps
    megabytes: float
    gates: tuple[GateResult, ...]
    passed: bool
    versions: dict[str, str]
    created: str
