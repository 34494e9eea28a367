"""When a trial of a search is given up: its held-out score is too low for what it will cost.

Optuna prunes only where there is one objective. Of several, a small network is worse than a large one in each epoch and
may still be the best of its size. So a trial is held against those alone that were expected to cost no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compactmtl.config.search import PruningConfig, SearchConfig
from compactmtl.train import GivenUp

Costs = tuple[float, ...]


class Hopeless(GivenUp):
    """A trial is given up: after `epoch` its best score is below `bound`, of `count` others."""

    def __init__(self, epoch: int, score: float, bound: float, count: int) -> None:
        super().__init__(
            f"given up after epoch {epoch}: its best held-out score {score:.4g} is below {bound:.4g}, which {count} finished "
            "trials that cost no more set"
        )
        self.epoch = epoch


@dataclass(frozen=True)
class Peer:
    """A finished trial: what it was expected to cost, and its held-out score after each epoch."""

    costs: Costs
    scores: tuple[float, ...]


def costs_of(search: SearchConfig, expected: Sequence[float] | None) -> Costs | None:
    """What counts as a trial's cost, of its expected MACs and parameters; None where it is needed and not known.

    A latency is measured once a network is trained. Until then its MACs stand for it.
    """
    wanted = {one.name for one in search.objectives}
    if not wanted - {"delta_m"}:
        return ()
    if expected is None:
        return None
    macs, parameters = expected
    return (
        *((macs,) if wanted & {"macs", "latency"} else ()),
        *((parameters,) if "parameters" in wanted else ()),
    )


def best_so_far(scores: Sequence[float]) -> list[float]:
    """The best of the scores up to each; one that is not finite counts as none."""
    best, found = -math.inf, []
    for score in scores:
        best = max(best, score) if math.isfinite(score) else best
        found.append(best)
    return found


def check_hopeless(
    config: PruningConfig, costs: Costs | None, scores: Sequence[float], peers: Sequence[Peer]
) -> None:
    """Raise Hopeless where a trial with these `scores`, one an epoch, is to be given up.

    A peer that ended early is held against it by the best score that it came to.
    """
    epoch = len(scores)
    if costs is None or epoch < config.after_epochs:
        return
    others = [
        best_so_far(peer.scores)[min(epoch, len(peer.scores)) - 1]
        for peer in peers
        if peer.scores
        and len(peer.costs) == len(costs)
        and all(theirs <= mine for theirs, mine in zip(peer.costs, costs, strict=True))
    ]
    if len(others) < config.after_trials:
        return
    best, bound = best_so_far(scores)[-1], float(np.quantile(others, config.quantile))
    if best < bound:
        raise Hopeless(epoch, best, bound, len(others))
