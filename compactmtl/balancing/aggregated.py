"""A balancer by one of TorchJD's aggregators: what it reads of the task gradients, and its state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torchjd import aggregation as jd

from compactmtl.balancing.base import TaskInfo
from compactmtl.balancing.gradient import At, Direction, GradientBalancer
from compactmtl.balancing.jacobian import Jacobian
from compactmtl.balancing.options import PerTask
from compactmtl.balancing.torchjd_adapter import dump_state, load_state
from compactmtl.config.schema import Frozen
from compactmtl.distributed.processes import first_process_decides
from compactmtl.errors import ConfigError, MissingDependencyError, TrainingError


class PreferenceOptions(Frozen):
    """How much each task is preferred, in the order of the tasks; all alike by default."""

    preference: PerTask = None


def preference(options: PreferenceOptions) -> Tensor | None:
    """The preferences as TorchJD takes them."""
    return None if options.preference is None else torch.tensor(options.preference, dtype=torch.float64)


class Aggregated(GradientBalancer):
    """A balancer by one of TorchJD's aggregators, which `make` builds of its options.

    `reads` says what it is given: "gramian" (its factors depend on the gramian up to scale), "scaled" (on the gramian
    as it is), "root" (a matrix with that gramian stands for the jacobian), or "matrix" (the whole jacobian).
    `by_samples` says whether it can work on gradients by features, of which each batch has others.

    Raises MissingDependencyError where it needs a solver that is not installed, ConfigError where its options do not
    fit the tasks.
    """

    reads: ClassVar[Literal["gramian", "scaled", "root", "matrix"]] = "gramian"
    by_samples: ClassVar[bool] = True

    def __init__(
        self,
        tasks: Mapping[str, TaskInfo],
        options: Mapping[str, Any] | None = None,
        at: At = "shared_parameters",
    ) -> None:
        super().__init__(tasks, options, at)
        if len(tasks) < (least := self.least()):
            raise ConfigError(
                f"balancing {self.name} needs {least} tasks or more with these options, found {len(tasks)}",
                "choose another balancing.name, or other options",
            )
        if at == "features" and not self.by_samples:
            raise ConfigError(
                f"balancing {self.name} remembers each element of the gradient, and features are others in each batch",
                "remove balancing.at",
            )
        per_task = any(isinstance(value, tuple | list) for value in self.options.model_dump().values())
        self.fixed = self.fixed or per_task
        try:
            # in a tuple: what it remembers comes and goes, and is saved as the extra state
            self._aggregator = (self.make(),)
        except ImportError as error:
            raise MissingDependencyError(
                f"balancing {self.name}: {str(error).partition(' Install')[0]}",
                "pip install 'compactmtl[balancing]'",
            ) from error
        self._loaded: Mapping[str, Any] | None = None

    @abstractmethod
    def make(self) -> jd.Aggregator:
        """TorchJD's aggregator of these options."""

    def least(self) -> int:
        """How many tasks it needs."""
        return 1

    def rescaled(self, factors: Tensor, scale: Tensor) -> Tensor:
        """The factors of the gramian, of those of the gramian over `scale`: the same, where scale does not matter."""
        return factors

    def _direction(self, jacobian: Jacobian, gramian: Tensor, losses: Mapping[str, float]) -> Direction:
        device = jacobian.rows[0].device
        if self._loaded is not None:
            load_state(
                self.aggregator, self._loaded, device if self.reads == "matrix" else torch.device("cpu")
            )
            self._loaded = None
        try:
            if self.reads == "matrix":
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
                f"balancing {self.name} cannot aggregate gradients of norms {norms}: {error}",
                "bring the losses to one scale with tasks.NAME.weight, or choose another balancing.name",
            ) from error
        return Direction(jacobian.combine(factors), factors)

    def _factors_of(self, gramian: Tensor) -> Tensor:
        """The factor of each task's gradient, float64 (T,)."""
        # TorchJD takes a gramian of a small trace for 0 (and would then average): bring the mean square norm to 1
        scale = torch.ones(()) if self.reads in ("scaled", "root") else gramian.diagonal().mean()
        if self.reads == "root":
            factors = self._of_root(_root(gramian))
        else:
            weighting = cast(jd.GramianWeightedAggregator, self.aggregator).gramian_weighting
            factors = weighting(gramian / scale)
        return self.rescaled(factors, scale)

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
