"""Batch norm with statistics of each data set while training, folded into one for deployment.

While training each source's images are normalized by the statistics of their own batch, and each source has running
statistics of its own; γ and β are shared. Source: arXiv:1603.04779 (statistics by domain), without its second pass. What
is validated and deployed has one mean and one variance, those of a draw from all sources in the shares p in which
training draws them:

    mean = Σ p_s mean_s,    variance = Σ p_s (variance_s + (mean_s − mean)²)

In a task's head the sum is over the sources that label the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compactmtl.data.base import Batch
from compactmtl.data.loader import Loader
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.models import MultiTaskModel
from compactmtl.surgery.slice_plan import Kept, cut
from compactmtl.tasks import Task
from compactmtl.tasks.by_source import rows_by_source
from compactmtl.train.part import Part, Setup
from compactmtl.verify.accuracy import Run, evaluate
from compactmtl.verify.result import TaskMetrics

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class Statistics:
    """Running statistics of one source at one norm: (C,), (C,) and the batches seen."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    @classmethod
    def fresh(cls, norm: _BatchNorm) -> Statistics:
        """Of a norm that saw nothing of the source yet."""
        assert norm.running_mean is not None and norm.running_var is not None
        count = torch.zeros((), dtype=torch.long, device=norm.running_mean.device)
        return cls(norm.running_mean.clone(), norm.running_var.clone(), count)


class SourceNorms(Part):
    """Running statistics by norm and source. The norms of the model always hold the folded ones."""

    name: ClassVar[str] = "source_norms"
    logs: ClassVar[str] = "batch_norm"

    def __init__(
        self, model: MultiTaskModel, shares: Mapping[str, float], labeled: Mapping[str, Sequence[str]]
    ) -> None:
        """`shares` are each source's of the training images, `labeled` the sources of each task."""
        self._shares, self._labeled = dict(shares), labeled
        self._own: dict[str, dict[str, Statistics]] = {}
        self._apart: TaskMetrics = {}
        self._bind(model)
        for name, norm in self._norms.items():
            self._own[name] = {source: Statistics.fresh(norm) for source in self._shares}

    def _bind(self, model: MultiTaskModel) -> None:
        self._norms = {name: module for name, module in model.named_modules() if _is_norm(module)}
        self._of_task = {id(module): task for task, head in model.heads.items() for module in head.modules()}

    def forward_context(self, batch: Batch) -> AbstractContextManager[None]:
        """Each image is normalized by its own source's statistics; those that the batch moved are folded afterwards."""
        return self._by_source(batch["sources"])

    @contextmanager
    def _by_source(self, sources: Sequence[str]) -> Iterator[None]:
        rows = rows_by_source(sources)
        for name, norm in self._norms.items():
            norm.forward = _Forward(norm, self._own[name], rows, len(sources))
        try:
            yield
        finally:
            for name, norm in self._norms.items():
                del norm.forward
                self._fold(name, norm)

    @torch.no_grad()
    def _fold(self, name: str, norm: _BatchNorm) -> None:
        """The rule above, over the sources that the norm has seen."""
        assert norm.running_mean is not None and norm.running_var is not None
        task = self._of_task.get(id(norm))
        labeling = self._labeled.get(task, ()) if task is not None else tuple(self._shares)
        seen = [s for s in self._shares if s in labeling and int(self._own[name][s].num_batches_tracked)]
        if not seen:
            return
        weights = norm.running_mean.new_tensor([self._shares[source] for source in seen])
        weights = (weights / weights.sum())[:, None]
        means = torch.stack([self._own[name][source].running_mean for source in seen])
        variances = torch.stack([self._own[name][source].running_var for source in seen])
        mean = (weights * means).sum(0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((weights * (variances + (means - mean).square())).sum(0))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.copy_(
                torch.stack([self._own[name][source].num_batches_tracked for source in seen]).sum()
            )

    def measure(self, run: Run, loader: Loader, tasks: Mapping[str, Task]) -> None:
        """Note the metrics with each source's own statistics, beside which the folded ones' cost shows."""
        self._apart = evaluate(run, _Apart(self, loader), tasks)

    def report(self) -> Mapping[str, Any]:
        """The metrics on the split that selects, before folding."""
        return {"own_statistics": self._apart}

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        before = self._own
        self._bind(model)
        self._own = {
            name: {
                source: Statistics(*(cut(f"{name}.{key}", getattr(one, key), kept) for key in _BUFFERS))
                for source, one in before[name].items()
            }
            for name in self._norms
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {source: [getattr(one, key) for key in _BUFFERS] for source, one in own.items()}
            for name, own in self._own.items()
        }

    def load_state_dict(self, training: Any, state: Any) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for the statistics of another network."""
        if set(state) != set(self._own) or any(set(own) != set(self._shares) for own in state.values()):
            raise ArtifactError(
                "the saved statistics of batch norm are of another network or of other sources",
                "resume with the same recipe",
            )
        for name, own in state.items():
            for source, values in own.items():
                mine = self._own[name][source]
                for key, value in zip(_BUFFERS, values, strict=True):
                    setattr(mine, key, value.to(mine.running_mean.device).clone())


class _Forward:
    """A norm's own forward pass, once for the rows of each source with the running statistics of that source."""

    def __init__(
        self, norm: _BatchNorm, own: Mapping[str, Statistics], rows: Mapping[str, list[int]], batch: int
    ) -> None:
        self._norm, self._own, self._rows, self._batch = norm, own, rows, batch

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) != self._batch:
            raise ConfigError(
                f"data.mixing.batch_norm: a norm is given {len(x)} rows of a batch of {self._batch} images, so that its "
                "rows are of no source",
                "set data.mixing.batch_norm: shared",
            )
        if len(self._rows) == 1:
            return self._part(next(iter(self._rows)), x)
        outputs = [self._part(source, x[rows]) for source, rows in self._rows.items()]
        order = [row for rows in self._rows.values() for row in rows]
        joined = torch.cat(outputs)
        if order == list(range(len(order))):
            return joined
        return joined[torch.tensor(order, device=x.device).argsort()]

    def _part(self, source: str, x: Tensor) -> Tensor:
        own, norm = self._own[source], self._norm
        folded = {key: getattr(norm, key) for key in _BUFFERS}
        for key in _BUFFERS:
            setattr(norm, key, getattr(own, key) if folded[key] is not None else None)
        try:
            return type(norm).forward(norm, x)
        finally:
            for key, value in folded.items():
                setattr(norm, key, value)


@dataclass(frozen=True)
class _Apart:
    """Batches of a loader, each of which meets norms with its own source's statistics."""

    norms: SourceNorms
    loader: Loader

    @property
    def labeled_apart(self) -> frozenset[str]:
        """As the loader's."""
        return self.loader.labeled_apart

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            with self.norms._by_source(batch["sources"]):
                yield batch


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats


def folding_line(metrics: TaskMetrics, apart: TaskMetrics, tasks: Mapping[str, Task]) -> str:
    """What folding cost, in words: each task's primary metric before and after."""
    parts: Iterable[str] = (
        f"{name} {task.primary} {apart[name][task.primary]:.4g} with each source's statistics, "
        f"{metrics[name][task.primary]:.4g} folded"
        for name, task in tasks.items()
        if name in metrics and name in apart  # what was not measured the score names
    )
    return f"batch norm: {'; '.join(parts)}"


def build_source_norms(setup: Setup) -> SourceNorms | None:
    """The recipe's `data.mixing.batch_norm: per_source`, or None. Raises ConfigError where the network has no batch norm."""
    data = setup.recipe.data
    if not data.sources or data.mixing.batch_norm == "shared":
        return None
    if not any(_is_norm(module) for module in setup.model.modules()):
        raise ConfigError(
            "data.mixing.batch_norm: per_source, and the network has no batch norm with running statistics",
            "take the key out",
        )
    labeled = {task: [s.called for s in data.sources if task in s.tasks] for task in setup.tasks}
    return SourceNorms(setup.model, setup.shares, labeled)
