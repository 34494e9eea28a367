"""A recipe's structured sparsity during training: what steers it, what it reports, when its model may be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch.optim import Optimizer

from compactmtl.backends import align_of
from compactmtl.data.base import Batch
from compactmtl.graph.space import Flags
from compactmtl.loops.controls import build_steering
from compactmtl.loops.steering import Foreseen, Report, Steering
from compactmtl.models import MultiTaskModel
from compactmtl.sparsity import ChannelGroups, Control, LatencyTable
from compactmtl.sparsity.target import table_in
from compactmtl.surgery.slice_plan import Kept
from compactmtl.train.part import ForwardPass, Part, Setup, Training

__all__ = ["Foreseen", "Sparsifier", "build_sparsifier", "table_of"]


class Sparsifier(Part):
    """Steers channel groups; the same object does so in a loop of one's own, see `compactmtl.loops.Shrinking`.

    `undecayed` names the parameters that the prox shrinks: weight decay would shrink them twice.
    """

    name: ClassVar[str] = "sparsifier"
    logs: ClassVar[str] = "sparsity"

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.undecayed = steering.control.shrunk

    @property
    def groups(self) -> ChannelGroups:
        return self.steering.groups

    @property
    def control(self) -> Control:
        return self.steering.control

    def attach(self, optimizer: Optimizer) -> None:
        self.steering.attach(optimizer)

    def before_backward(self, training: Training, current: ForwardPass) -> None:
        scaler = training.scaler
        self.steering.look(current.losses, float(scaler.get_scale()) if scaler.is_enabled() else 1.0)

    def after_backward(self, training: Training, batch: Batch) -> None:
        self.steering.observe()

    def after_step(self, training: Training, batch: Batch) -> None:
        self.steering.step()

    @property
    def eligible(self) -> bool:
        """Whether the model as it is may become the best checkpoint.

        With a target: once it is reached, for before that the best model is the denser one. A λ without one has
        no target: once the prox has begun.
        """
        return self.steering.reached

    def foreseen(self) -> Foreseen | None:
        """What the target will leave, by the size of the weights as they are now; None without a target."""
        return self.steering.foreseen()

    def notes(self) -> list[str]:
        """What a user should know of the groups before training, in lines."""
        return self.steering.notes()

    def dead(self) -> list[Flags]:
        """The groups that are zero now and stay so, a bool array (n,) a family."""
        return self.steering.dead()

    def removable(self) -> list[Flags]:
        """Of `dead` the groups that may leave the network now: those that no bound on a task can bring back."""
        return self.steering.removable()

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        self.steering.rebind(model, kept)

    def report(self) -> Report:
        return self.steering.report()

    def state_dict(self) -> dict[str, Any]:
        return self.steering.state_dict()

    def load_state_dict(self, training: Training, state: Any) -> None:
        self.steering.load_state_dict(state)


def table_of(session: Mapping[str, Any]) -> LatencyTable | None:
    """The latency table in the state of a session; None where the run has no budget of that kind."""
    return table_in(session.get(Sparsifier.name))


def build_sparsifier(setup: Setup) -> Sparsifier | None:
    """The recipe's sparsity over the shared encoder, or None where it asks for none.

    Raises ConfigError for a target that can't be reached or a model without channels to remove, SurgeryError where
    the model can't be traced.
    """
    recipe = setup.recipe
    config = recipe.sparsity
    if config is None:
        return None
    steering = build_steering(
        config,
        setup.total_steps,
        align_of(recipe),
        setup.model,
        setup.inputs,
        auto=recipe.surgery.align == "auto",
        table=setup.table,
    )
    return Sparsifier(steering)
