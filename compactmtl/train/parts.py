"""The parts of a training step, in their order. A new part is a module of its own and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from compactmtl.train.alternating import build_diagonal_pass
from compactmtl.train.average import build_average
from compactmtl.train.balance import build_balancing
from compactmtl.train.bounds import build_bounds
from compactmtl.train.compiled import build_compiled
from compactmtl.train.distill import build_distiller
from compactmtl.train.mixup import build_mixup
from compactmtl.train.norms import build_norm_estimates
from compactmtl.train.part import Part, Setup
from compactmtl.train.pseudo import build_pseudo_heads
from compactmtl.train.recompute import build_recompute
from compactmtl.train.regularize import build_penalties
from compactmtl.train.shrink import build_shrinker
from compactmtl.train.source_norms import build_source_norms
from compactmtl.train.sparse import build_sparsifier
from compactmtl.train.uphill import build_uphill

P = TypeVar("P", bound=Part)

# Every hook of a step, and the loading of states, goes through this list from top to bottom.
ORDER: tuple[Callable[[Setup], Part | None], ...] = (
    build_compiled,  # how the network is run, and nothing else
    build_recompute,  # in place of what its blocks keep
    build_mixup,  # mixes the images before all that looks at them, and scores the task's own head
    build_pseudo_heads,  # a task's loss is the mean over its heads ...
    build_distiller,  # ... and the teacher's term is added to that; its teacher is loaded at the network's first size,
    build_shrinker,  # then removed channels go again, and what follows loads the state of the smaller network
    build_source_norms,  # what of the norms is left; they hold folded statistics whenever others read them
    build_uphill,  # replaces the gradients, so it comes before all that reads them
    build_sparsifier,  # reads the gradients; its proximal step directly follows the optimizer's
    build_balancing,  # combines losses that are complete; looks at them again when all weights have moved
    build_penalties,  # are added to the balanced total
    build_bounds,  # when all weights have moved; may put channels back
    build_norm_estimates,  # between an epoch's steps and its validation
    build_diagonal_pass,  # a pass of its own before the step's; here for its state and its report
    build_average,  # of the weights as all others leave them
)


def build_parts(setup: Setup) -> tuple[Part, ...]:
    """The parts that a recipe asks for, in their order.

    Raises ConfigError, ArtifactError or SurgeryError where one does not fit the recipe or its model.
    """
    built = (build(setup) for build in ORDER)
    return tuple(part for part in built if part is not None)


def find_part(parts: Iterable[Part], kind: type[P]) -> P | None:
    """The part of a class, if it is among them."""
    return next((part for part in parts if isinstance(part, kind)), None)
