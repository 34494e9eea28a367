"""Shrinking a network in a training loop of one's own: the same groups, controls and removals as in a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from compactmtl.backends import Align, load_target
from compactmtl.config.sparsity import SparsityConfig
from compactmtl.errors import ArtifactError, TrainingError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.copies import copy_model
from compactmtl.graph.inputs import as_arguments
from compactmtl.latency import check_target
from compactmtl.loops import settings
from compactmtl.loops.averages import masked
from compactmtl.loops.controls import build_steering
from compactmtl.loops.held_out import Evaluate, Told, as_held_out, check_evaluate, check_looked
from compactmtl.loops.own_state import VERSION, in_words, read_own
from compactmtl.loops.removed import Removed, cut_model
from compactmtl.loops.settings import in_own_words
from compactmtl.loops.steering import Steering
from compactmtl.loops.watch import Watch
from compactmtl.loops.whole_states import WholeStates
from compactmtl.sparsity import ChannelGroups, LatencyTable
from compactmtl.surgery import CompactResult, Plan, compact
from compactmtl.surgery.plan import signature
from compactmtl.surgery.slice_plan import Kept

Method = Literal["selective", "controller", "magnitude", "group_norm", "taylor"]


class Shrinking:
    """Brings a network to a budget while a loop of one's own trains it.

        shrinking = Shrinking(model, optimizer, image, total_steps=steps, mac_reduction=0.7)
        for epoch in range(epochs):
            for image, target in loader:
                loss(model(image), target).backward()
                optimizer.step()
                shrinking.step()
                optimizer.zero_grad()
            shrinking.end_epoch()
        result = shrinking.finish()  # result.model, result.plan, result.report

    What decides is as in a recipe's section `sparsity`, and so is what comes out: channels are ranked, brought to
    zero on a schedule that ends at the budget, and held there; `finish` removes them and proves that the function is kept.

    - **Gradient accumulation.** Call `step()` where the optimizer may have stepped. Where it has not, nothing happens.
    - **Mixed precision.** A step that a GradScaler skips is none. Make the scaler unscale before `observe()`.
    - **Clipping.** What has died has no gradient, so that it has no say in a norm. Channels are ranked by the gradients
      that the optimizer steps on; call `observe()` before clipping to rank them by the gradients as they are.
    - **Averages.** Give an AveragedModel as `averages`; it is cut with the network, and begins anew when the budget is
      reached, because what came before is of a larger network. `finish(average)` compacts it.
    - **torch.compile.** Give the compiled model; it is compiled anew after its channels went.
    - **Several tasks.** Hand their losses to `look` before backward; with `losses` no task loses more than it may.
    - **shrink_every=k** removes dead channels from the network after every k-th `end_epoch()`, with what the optimizer and
      the averages hold of them. The modules stay the same objects; their parameters are new ones.

    **Checkpoints** are `model.state_dict()`, `optimizer.state_dict()` and `state_dict()` of this object. Those of model,
    optimizer and averages stay at the network's first size, with zeros where channels were removed, until `finish`. To resume, build all as
    at the start and load the three in any order.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example_inputs: Any,
        *,
        total_steps: int,
        mac_reduction: float | None = None,
        parameter_reduction: float | None = None,
        latency_ms: float | None = None,
        speedup: float | None = None,
        strength: float | None = None,
        method: Method | None = None,
        target: str | None = None,
        table: LatencyTable | None = None,
        averages: AveragedModel | Sequence[AveragedModel] = (),
        align: int | None = None,
        evaluate: Evaluate | None = None,
        **options: Any,
    ) -> None:
        """Find the channel groups of `model` and plan their removal over `total_steps` optimizer steps.

        Args:
            model: any module that `torch.export` can trace, on one device.
            optimizer: SGD, Adam or AdamW over its parameters. `strength` and `controller` need parameter groups without
                weight decay on what they shrink, see `split_parameter_groups`.
            example_inputs: a tensor, positional arguments, or a mapping of keyword arguments, on the model's device.
            total_steps: optimizer steps of the whole training.
            mac_reduction: share of the model's MACs to remove.
            parameter_reduction: share of its parameters to remove.
            latency_ms: most milliseconds on `target`, at its batch size.
            speedup: how many times as fast as the original on `target`.
            strength: a constant λ, without a budget.
            method: what decides how a budget is met: "selective" (the default), "controller" (a group lasso whose λ finds
                itself), or to prune once by "magnitude", "group_norm" or "taylor".
            target: name or file of the target. Of a latency budget the network is timed on it, here and now, or its table
                read from the user's cache; of another budget only the target's multiple of channels is taken.
            table: a latency table that was measured before, such as on another device, for a latency budget. Choices by it
                are measured too where its target runs here.
            averages: averages of the model's weights.
            align: multiple that channel counts are kept at; by default each layer's step by the latency table of a budget,
                else that of the `target`, else 1.
            evaluate: of `losses`, measures the tasks on held-out data: a function of the network, in eval mode, that returns
                {task: value}, as `judge` takes it. By default `judge` is told.
            options: keys of a recipe's section `sparsity` and of the method in it, such as `start`, `end`, `ramp`,
                `min_channels`, `groups`, `scope` ("model" by default), `losses` and `shrink_every`.

        Raises:
            ConfigError: naming the arguments, where they don't fit each other, the model has no channels to remove, or
                the budget can't be reached.
            SurgeryError: where the model cannot be traced.
            MissingDependencyError: where the target cannot run here.
            MachineError: where the machine is too busy to measure on.
        """
        budget = {
            "mac_reduction": mac_reduction,
            "parameter_reduction": parameter_reduction,
            "latency_ms": latency_ms,
            "speedup": speedup,
        }
        self.config = settings.section_of(method, strength, budget, target, table, options)
        check_evaluate(self.config.losses, evaluate)
        self._evaluate = evaluate
        if table is not None and target is not None:
            check_target(table, target, load_target(target), anywhere=True)
        self.model, self.optimizer = model, optimizer
        self.total_steps = total_steps
        self._network, self._optimizer = settings.plain_module(model), settings.plain_optimizer(optimizer)
        self._inputs = as_arguments(self._network, example_inputs)
        self._averages = [averages] if isinstance(averages, AveragedModel) else list(averages)
        settings.check(self._network, self._optimizer, self._inputs, total_steps)
        settings.check_averages(self._averages, self._network)
        self._auto = align is None
        self.align = settings.align_of(target) if align is None else align
        # the network at its first size, for the compact model at the end
        self._first = None if self.config.shrink_every is None else copy_model(self._network).to("cpu")
        with in_own_words():
            self._signature = signature(self._network)
            self._removed = Removed(self._network, self._inputs)
            self._steering = self._build(self.config, table)
        self._watch = Watch(self._optimizer, self._steering)
        self._states = WholeStates(self._removed)
        self._states.of(self._network)
        self._states.of_optimizer(self._optimizer, self._network)
        for average in self._averages:
            self._states.of(average.module)
        self._steps = self._epochs = 0
        self._restarted = self._finished = False

    def _build(self, config: SparsityConfig, table: LatencyTable | None) -> Steering:
        model, inputs, align = self._network, self._inputs, Align(self.align, "align")
        steering = build_steering(
            config, self.total_steps, align, model, inputs, auto=self._auto, table=table
        )
        if self.align == 1 and steering.table is None:
            steering.align = None  # any count: nothing to say
        steering.attach(self._optimizer)
        return steering

    @property
    def groups(self) -> ChannelGroups:
        """The channel groups that are left."""
        return self._steering.groups

    @property
    def table(self) -> LatencyTable | None:
        """The latency table of the budget."""
        return self._steering.table

    @property
    def steps(self) -> int:
        """Optimizer steps that were counted."""
        return self._steps

    @property
    def epochs(self) -> int:
        """Epochs that were counted."""
        return self._epochs

    @property
    def pending(self) -> bool:
        """Whether there was a backward pass or a step of the optimizer since the last `step()`."""
        return self._watch.pending

    @property
    def reached(self) -> bool:
        """Whether the budget has been reached, so that from now on models compare. Of a λ: whether the prox has begun."""
        return self._steering.reached

    def notes(self) -> list[str]:
        """What a user should know before training, in lines: which layers are in no group, and why."""
        return self._steering.notes()

    def report(self) -> dict[str, Any]:
        """For a log: shares of zero groups and of removable MACs and parameters, λ, and zeros by layer."""
        return self._steering.report()

    def look(self, losses: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Before `backward()`: the loss of each task by name, with its graph. Every so many steps (`tasks_every`) their gradients
        tell what each channel is worth to each task. `scale` is multiplied to losses of half precision, and divided out.

        Raises ConfigError for what are no losses, TrainingError where none of them has a graph.
        """
        self._check_alive("look()")
        check_looked(losses)
        with in_own_words():
            self._steering.look(losses, scale)

    @property
    def check_due(self) -> bool:
        """Whether `judge` is to be told what the tasks have on held-out data, before the next step."""
        return self._steering.check_due

    def judge(self, told: Mapping[str, Told]) -> str:
        """Go on as the bounds of `losses` allow, with what the tasks have on held-out data now; what was put back, in words.

        `told` has for each task a number, or the values (N,) of single samples, of which a standard error follows;
        (value, False) where lower is better. Raises TrainingError where no check is due.
        """
        self._check_alive("judge()")
        if not self.check_due:
            raise TrainingError("judge() while no check is due", "call it where check_due is True")
        with in_own_words():
            return self._steering.judge(self._network, lambda: as_held_out(told))

    def observe(self) -> None:
        """Rank channels by the gradients as they are now: after backward and unscaling, before clipping. Not needed
        otherwise. Raises TrainingError before a backward pass.
        """
        self._check_alive("observe()")
        self._watch.observe()

    def step(self) -> bool:
        """After the optimizer's step, once for each. Whether the optimizer has stepped: where gradients accumulate or a
        scaler skipped the step, nothing happens.

        Raises TrainingError without a backward pass, after two steps of the optimizer, or after more than `total_steps`.
        """
        self._check_alive("step()")
        self._check_judged()
        if not self._watch.stepped():
            return False
        if self._steps >= self.total_steps:
            raise TrainingError(
                f"step {self._steps + 1} of {self.total_steps}: more optimizer steps than said",
                "give the number of steps of the whole training as total_steps: the schedule is made for it",
            )
        self._steps += 1
        with in_own_words():
            self._steering.step()
        if self._steering.check_due and self._evaluate is not None:
            with borrowed(self._network, weights=False):
                told = self._evaluate(self.model)
            self.judge(told)
        self._watch.stepping_done()
        if self.reached and not self._restarted:
            self._restarted = True
            for average in self._averages:
                average.n_averaged.zero_()  # the next update takes the weights as they are
        return True

    def end_epoch(self) -> bool:
        """After an epoch's steps: remove dead channels where `shrink_every` says so. Whether the network became smaller.

        Raises TrainingError where they are not zero any more, or it does not run without them or has another function;
        nothing is removed then.
        """
        self._check_alive("end_epoch()")
        self._epochs += 1
        every = self.config.shrink_every
        if every is None or self._epochs % every:
            return False
        with in_own_words(), self._states.paused():
            self._steering.check_zeros()
            plan = self._removed.find(self._network, self.groups, self._steering.removable())
            if plan is None:
                return False
            kept = self._removed.remove(self._network, plan, self._optimizer)
            self._follow(plan, kept)
        return True

    def _follow(self, plan: Plan, kept: Kept) -> None:
        """What goes with a network that was cut."""
        for average in self._averages:
            cut_model(average.module, plan)
        self._steering.rebind(self._network, kept)
        self._watch.rebind()
        if self.model is not self._network or self._network._compiled_call_impl is not None:
            torch.compiler.reset()  # what was compiled is of the wider network

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside model and optimizer: tensors and plain values, for torch.load with
        weights_only=True.
        """
        return {
            "version": VERSION,
            "network": self._signature,
            "asked": self._asked(),
            "steps": self._steps,
            "epochs": self._epochs,
            "restarted": self._restarted,
            "removed": self._removed.plan.to_json(),
            "table": None if self.table is None else self.table.model_dump_json(),
            "control": self._steering.state_dict(),
        }

    def _asked(self) -> str:
        return in_words(self.config, self.total_steps, self.align)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, before or after model and optimizer load theirs.

        Channels are removed again. Raises ArtifactError for the state of another network or of other settings, and for one
        that lacks something; nothing is removed then.
        """
        self._check_alive("load_state_dict()")
        plan, saved = read_own(state, type(self._network).__name__, self._signature, self._asked())
        if not self._removed.plan.empty and (plan != self._removed.plan or self.table != saved):
            raise ArtifactError(
                "channels were already removed from this network, and not as the state says",
                "load the state into a Shrinking of a model that is newly built",
            )
        with in_own_words(), self._states.paused():
            if saved is not None and saved != self.table:
                # the choice goes by the table of the start, wherever the run goes on
                self._steering = self._build(self.config, saved)
                self._watch.steering = self._steering
            if not plan.empty and self._removed.plan.empty:
                self._follow(plan, self._removed.again(self._network, plan, self._optimizer))
            self._steering.load_state_dict(state["control"])
        self._steps, self._epochs = int(state["steps"]), int(state["epochs"])
        self._restarted = bool(state["restarted"])
        self._watch.rebind()

    def finish(
        self, average: AveragedModel | None = None, *, early: bool = False, gather: bool = False
    ) -> CompactResult:
        """The compact model in eval mode, its plan from the network's first size, and the report with the proof.

        The network in training stays as it is. From now on its state_dict and the optimizer's are of the size that they
        have, and this object takes no further steps.

        Args:
            average: the average of the weights to compact in place of the model's. What is zero in the model is zero in it.
            early: take what is there, although the budget is not reached yet.
            gather: as for `compact`.

        Raises:
            TrainingError: where the budget is not reached yet, the last check of `losses` was not judged, or channels that were to go are not zero, such as in
                weights from before they went.
            SurgeryError: where the model can't be edited.

        Warns:
            CompactWarning: where surgery had to leave more than the budget, as where it rolled an edit back.
        """
        self._check_alive("finish()")
        if not self.reached and not early:
            raise TrainingError(
                f"finish() after step {self._steps} of {self.total_steps}: the budget is not reached yet",
                "train on, or take the network as it is: finish(early=True)",
            )
        settings.check_average(average, self._averages)
        if not early:
            self._check_judged()
            self._steering.check_zeros()
            self._steering.check_met()
        with in_own_words(), self._states.paused():
            chosen = self._network if average is None else masked(average.module, self._network)
            if self._first is not None:
                self._first.load_state_dict(self._removed.whole(chosen.state_dict()))
                chosen = self._first.to(next(self._network.parameters()).device)
            # counts that a latency budget chose by its table's steps get no dead channels added
            align = 1 if self._auto and self.table is not None else self.align
            result = compact(chosen, self._inputs, align=align, gather=gather)
        if not early:
            self._steering.warn_of(result.report)
        self._states.close()
        self._watch.close()
        self._finished = True
        return result

    def _check_judged(self) -> None:
        if self.check_due:
            raise TrainingError(
                f"after step {self._steps} nobody judged what the tasks have lost",
                "give evaluate=, or call judge() after step() where check_due is True",
            )

    def _check_alive(self, what: str) -> None:
        if self._finished:
            raise TrainingError(
                f"{what} after finish()", "build another Shrinking to go on with a smaller budget"
            )
