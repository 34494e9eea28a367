"""TorchJD's aggregators by name: their options, what they read of the task gradients, and their state.

Source of each method: its docstring in `torchjd.aggregation`; docs/balancing.md lists the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torchjd import aggregation as jd
from torchjd.linalg import QuadprogProjector

from compactmtl.balancing.base import NoOptions
from compactmtl.balancing.gradient import Direction, GradientBalancer
from compactmtl.balancing.jacobian import Jacobian, first_process_decides
from compactmtl.balancing.options import NotNegative, PerTask, Unit, method_options, vector
from compactmtl.balancing.torchjd_state import dump_state, load_state
from compactmtl.config.schema import Frozen, Positive
from compactmtl.errors import ConfigError, MissingDependencyError, TrainingError

At = Literal["features", "shared_parameters"]


class PreferenceOptions(Frozen):
    """How much each task is preferred, in the order of the tasks; all alike by default."""

    preference: PerTask = None


class UpgradOptions(PreferenceOptions):
    """Of UPGrad and DualProj; `reg_eps` is added to the diagonal of the gramian, whose trace is 1."""

    reg_eps: NotNegative = 1e-4


class MgdaOptions(Frozen):
    """Of the Frank-Wolfe solver."""

    epsilon: Positive = 0.001
    max_iters: Annotated[int, Field(ge=1)] = 100


class CagradOptions(Frozen):
    """`c`: radius of the ball around the mean gradient, as a share of its norm."""

    c: NotNegative = 0.4


class GradvacOptions(Frozen):
    """`beta`: how fast the target similarities follow."""

    beta: Unit = 0.5


class AlignedOptions(PreferenceOptions):
    """`scale_mode`: which singular value the others are brought to."""

    scale_mode: Literal["min", "median", "rmse"] = "min"


class FairgradOptions(Frozen):
    """`alpha`: 0 is the mean, 1 proportional fairness, a large one max-min fairness."""

    alpha: NotNegative = 1.0
    max_iters: Annotated[int, Field(ge=1)] | None = None


class GraddropOptions(Frozen):
    """`leak`: share of each task's gradient that is never dropped, in the order of the tasks."""

    leak: tuple[Unit, ...] | None = None


class ExcessOptions(Frozen):
    """`step`: of the weights; `warmup_steps` with equal weights, which set the baseline."""

    step: Positive = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class PcdOptions(Frozen):
    """The first task is the primary one; `tau`: progress of the others, `beta`: memory of the norms."""

    tau: Unit = 0.02
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.999


class KrumOptions(Frozen):
    """`n_byzantine` gradients may be anything, `n_selected` are averaged."""

    n_byzantine: Annotated[int, Field(ge=0)] = 0
    n_selected: Annotated[int, Field(ge=1)] = 1


class TrimmedOptions(Frozen):
    """`trim`: largest and smallest values left out of each element's mean."""

    trim: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True)
class Spec:
    """One of TorchJD's aggregators.

    `reads` says what it is given: "gramian" (its factors depend on the gramian up to scale), "scaled" (on the gramian
    as it is), "root" (a matrix with that gramian stands for the jacobian), or "matrix" (the whole jacobian).
    """

    name: str
    options: type[Frozen]
    make: Callable[[Any, int], jd.Aggregator]  # options, tasks
    reads: Literal["gramian", "scaled", "root", "matrix"]
    fixed: bool = False  # it remembers something of each task
    least: Callable[[Any], int] = lambda options: 1  # tasks that it needs
    by_samples: bool = True  # whether it can work on gradients by features, of which each batch has others


def _preference(options: PreferenceOptions) -> Tensor | None:
    return None if options.preference is None else torch.tensor(options.preference, dtype=torch.float64)


AGGREGATORS: Mapping[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(
            "upgrad",
            UpgradOptions,
            lambda o, n: jd.UPGrad(_preference(o), QuadprogProjector(reg_eps=o.reg_eps)),
            "gramian",
        ),
        Spec(
            "dualproj",
            UpgradOptions,
            lambda o, n: jd.DualProj(_preference(o), QuadprogProjector(reg_eps=o.reg_eps)),
            "gramian",
        ),
        Spec("mgda", MgdaOptions, lambda o, n: jd.MGDA(o.epsilon, o.max_iters), "gramian"),
        Spec("pcgrad", NoOptions, lambda o, n: jd.PCGrad(), "gramian"),
        Spec("gradvac", GradvacOptions, lambda o, n: jd.GradVac(o.beta), "gramian", fixed=True),
        Spec("cagrad", CagradOptions, lambda o, n: jd.CAGrad(o.c), "gramian"),
        Spec("imtl_g", NoOptions, lambda o, n: jd.IMTLG(), "gramian"),
        Spec(
            "aligned_mtl", AlignedOptions, lambda o, n: jd.AlignedMTL(_preference(o), o.scale_mode), "gramian"
        ),
        Spec("config", PreferenceOptions, lambda o, n: jd.ConFIG(_preference(o)), "root"),
        Spec("fairgrad", FairgradOptions, lambda o, n: jd.FairGrad(o.alpha, o.max_iters), "gramian"),
        Spec("graddrop", GraddropOptions, lambda o, n: jd.GradDrop(leak=vector(o.leak)), "matrix"),
        Spec(
            "excess_mtl",
            ExcessOptions,
            lambda o, n: jd.ExcessMTL(o.step, o.warmup_steps),
            "matrix",
            fixed=True,
            by_samples=False,
        ),
        Spec("pcd", PcdOptions, lambda o, n: jd.PCD(o.tau, o.beta), "scaled", fixed=True),
        Spec(
            "krum",
            KrumOptions,
            lambda o, n: jd.Krum(o.n_byzantine, o.n_selected),
            "gramian",
            fixed=True,
            least=lambda o: max(o.n_byzantine + 3, o.n_selected),
        ),
        Spec(
            "trimmed_mean",
            TrimmedOptions,
            lambda o, n: jd.TrimmedMean(o.trim),
            "matrix",
            fixed=True,
            least=lambda o: 2 * o.trim + 1,
        ),
        Spec("random_gradient", NoOptions, lambda o, n: jd.Random(), "root"),
    )
}


class Aggregated(GradientBalancer):
    """A balancer by one of TorchJD's aggregators.

    Raises MissingDependencyError where it needs a solver that is not installed, ConfigError where its options do not
    fit the tasks.
    """

    def __init__(
        self,
        spec: Spec,
        weights: Mapping[str, float],
        kinds: Mapping[str, str],
        options: Mapping[str, Any],
        at: At,
    ) -> None:
        super().__init__(weights, kinds, at)
        self.spec = spec
        self.options = method_options(spec.name, spec.options, weights, options)
        if len(weights) < (least := spec.least(self.options)):
            raise ConfigError(
                f"balancing {spec.name} needs {least} tasks or more with these options, found {len(weights)}",
                "choose another balancing.name, or other options",
            )
        if at == "features" and not spec.by_samples:
            raise ConfigError(
                f"balancing {spec.name} remembers each element of the gradient, and features are others in each batch",
                "remove balancing.at",
            )
        per_task = any(isinstance(value, tuple | list) for value in self.options.model_dump().values())
        self.fixed = spec.fixed or per_task
        try:
            # in a tuple: what it remembers comes and goes, and is told by the extra state
            self._aggregator = (spec.make(self.options, len(weights)),)
        except ImportError as error:
            raise MissingDependencyError(
                f"balancing {spec.name}: {str(error).partition(' Install')[0]}",
                "pip install 'compactmtl[balancing]'",
            ) from error
        self._loaded: Mapping[str, Any] | None = None

    def _direction(self, jacobian: Jacobian, gramian: Tensor, losses: Mapping[str, float]) -> Direction:
        device = jacobian.rows[0].device
        if self._loaded is not None:
            load_state(
                self.aggregator, self._loaded, device if self.spec.reads == "matrix" else torch.device("cpu")
            )
            self._loaded = None
        try:
            if self.spec.reads == "matrix":
                vector = self.aggregator(jacobian.matrix())
                if not jacobian.split:
                    vector = first_process_decides(vector, device)
                return Direction(jacobian.parts(vector))
            factors = first_process_decides(self._factors_of(gramian), device)
        except Exception as error:
            if not _of_solver(error):
                raise
            norms = ", ".join(
                f"{norm:.3g} of {task}"
                for task, norm in zip(jacobian.tasks, gramian.diagonal().sqrt().tolist(), strict=True)
            )
            raise TrainingError(
                f"balancing {self.spec.name} cannot aggregate gradients of norms {norms}: {error}",
                "bring the losses to one scale with tasks.NAME.weight, or choose another balancing.name",
            ) from error
        return Direction(jacobian.combine(factors), factors)

    def _factors_of(self, gramian: Tensor) -> Tensor:
        """The factor of each task's gradient, float64 (T,)."""
        # TorchJD takes a gramian of a small trace for 0 (and would then average): bring the mean square norm to 1
        scale = torch.ones(()) if self.spec.reads in ("scaled", "root") else gramian.diagonal().mean()
        if self.spec.reads == "root":
            factors = self._of_root(_root(gramian))
        else:
            weighting = cast(jd.GramianWeightedAggregator, self.aggregator).gramian_weighting
            factors = weighting(gramian / scale)
        if isinstance(self.options, FairgradOptions) and self.options.alpha > 0:
            # G x = x^(-1/α) is not free of scale: (G/s) y = y^(-1/α) has y = s^(α/(1+α)) x
            factors = factors * scale ** (-self.options.alpha / (1 + self.options.alpha))
        return factors

    def _of_root(self, root: Tensor) -> Tensor:
        if isinstance(self.aggregator, jd.WeightedAggregator):
            return self.aggregator.weighting(root)
        vector = self.aggregator(root)  # a combination of the rows: of which factors?
        solution: Tensor = torch.linalg.lstsq(root.T, vector[:, None], driver="gelsd").solution
        return solution[:, 0]

    @property
    def aggregator(self) -> jd.Aggregator:
        """TorchJD's own."""
        return self._aggregator[0]

    def get_extra_state(self) -> dict[str, Any]:
        """What the aggregator remembers, of tensors and numbers."""
        return dump_state(self.aggregator) if self._loaded is None else dict(self._loaded)

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        self._loaded = state  # until the gradients' device is known


def _of_solver(error: Exception) -> bool:
    """Whether a solver gave up; by name, for cvxpy need not be installed."""
    return isinstance(error, ValueError | ArithmeticError) or type(error).__name__ in (
        "SolverError",
        "LinAlgError",
    )


def _root(gramian: Tensor) -> Tensor:
    """A matrix (T, T) whose rows have these inner products."""
    values, vectors = torch.linalg.eigh(gramian)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root
