"""Each misuse of Shrinking is an error that names what is wrong and how to mend it."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from compactmtl.errors import ArtifactError, CompactError, ConfigError, TrainingError
from compactmtl.loops import Shrinking
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import Regime, StaircaseLatency
from compactmtl.sparsity.torch_pruning_adapter import TorchPruning
from tests.loops.nets import TwoHeads, adam, backward, example, loss_of, two_heads

_EACH = Regime(step=1, outputs=1e-3)
TABLE = LatencyTable(
    target="mine",
    layers={"shape": StaircaseLatency(full=(3, 16), align=1, aligned=_EACH, ragged=_EACH)},
)


def shrinking_of(model: nn.Module, optimizer: Any = None, **more: Any) -> Shrinking:
    arguments: dict[str, Any] = {
        "total_steps": 4,
        "mac_reduction": 0.5,
        "min_channels": 2,
        "every": 1,
        **more,
    }
    return Shrinking(model, adam(model) if optimizer is None else optimizer, example(), **arguments)


def said(error: CompactError) -> str:
    return f"{error.message} | {error.hint}"


def one_step(shrinking: Shrinking) -> None:
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    backward(loss_of(shrinking.model(image), image))
    shrinking.optimizer.step()
    shrinking.step()
    shrinking.optimizer.zero_grad()


def test_a_step_before_backward() -> None:
    shrinking = shrinking_of(two_heads())
    with pytest.raises(TrainingError, match=r"step\(\) without a backward pass") as caught:
        shrinking.step()
    assert "after loss.backward() and optimizer.step()" in caught.value.hint
    with pytest.raises(TrainingError, match=r"observe\(\) without a backward pass"):
        shrinking.observe()


def test_a_step_of_the_optimizer_before_backward() -> None:
    shrinking = shrinking_of(two_heads())
    with pytest.raises(TrainingError, match="has no gradient"):
        shrinking.optimizer.step()


def test_two_steps_of_the_optimizer_for_one() -> None:
    shrinking = shrinking_of(two_heads())
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    backward(loss_of(shrinking.model(image), image))
    shrinking.optimizer.step()
    shrinking.optimizer.step()
    with pytest.raises(TrainingError, match="stepped 2 times") as caught:
        shrinking.step()
    assert "after every step" in caught.value.hint


def test_an_optimizer_of_other_parameters() -> None:
    model = two_heads()
    with pytest.raises(
        ConfigError, match="none of the optimizer's 10 parameters is one of the model's"
    ) as caught:
        shrinking_of(model, adam(copy.deepcopy(model)))
    assert "model.parameters()" in caught.value.hint


def test_an_optimizer_of_a_part_of_the_parameters() -> None:
    model = two_heads()
    with pytest.raises(
        ConfigError, match=r"encoder\.0\.weight belongs to a channel group and does not train"
    ):
        shrinking_of(model, adam(model.shape))


def test_an_optimizer_without_a_proximal_step() -> None:
    model = two_heads()
    with pytest.raises(ConfigError, match="RMSprop") as caught:
        shrinking_of(model, torch.optim.RMSprop(model.parameters()))
    assert "SGD, Adam or AdamW" in caught.value.hint
    with pytest.raises(ConfigError, match="the optimizer is a list"):
        shrinking_of(model, list(model.parameters()))


def test_weight_decay_where_a_penalty_shrinks() -> None:
    model = two_heads()
    with pytest.raises(ConfigError, match="weight decay") as caught:
        Shrinking(
            model,
            torch.optim.AdamW(model.parameters(), weight_decay=0.1),
            example(),
            total_steps=4,
            strength=0.1,
        )
    assert "split_parameter_groups" in caught.value.hint


class NoChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 1, 3)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.only(image)
        return out


def test_nothing_to_shrink() -> None:
    with pytest.raises(ConfigError, match="no coupled channel groups") as caught:
        shrinking_of(NoChannels().double())
    assert "scope=" not in caught.value.hint  # all of the model is in it already
    frozen = two_heads().requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the model trains"):
        shrinking_of(frozen, adam(two_heads()))


def test_a_budget_that_cannot_be_reached() -> None:
    with pytest.raises(
        ConfigError, match=r"^mac_reduction 0\.99 cannot be reached: 0\.\d+ is the most"
    ) as caught:
        shrinking_of(two_heads(), mac_reduction=0.99)
    assert "sparsity" not in said(caught.value) and "lower mac_reduction" in caught.value.hint


def test_more_steps_than_said() -> None:
    shrinking = shrinking_of(two_heads())
    for _ in range(4):
        one_step(shrinking)
    with pytest.raises(TrainingError, match="step 5 of 4: more optimizer steps than said") as caught:
        one_step(shrinking)
    assert "total_steps" in caught.value.hint


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_a_number_of_steps_that_is_none(steps: object) -> None:
    with pytest.raises(ConfigError, match="total_steps is"):
        shrinking_of(two_heads(), total_steps=steps)


def test_the_state_of_another_model_or_of_other_settings() -> None:
    state = shrinking_of(two_heads()).state_dict()
    wider = TwoHeads(width=24).double()
    with pytest.raises(ArtifactError, match="of another network than this TwoHeads"):
        shrinking_of(wider).load_state_dict(state)
    with pytest.raises(ArtifactError, match=r"0\.5.*0\.4"):
        shrinking_of(two_heads(), mac_reduction=0.4).load_state_dict(state)
    with pytest.raises(ArtifactError, match=r"total_steps 4, .*total_steps 5, "):
        shrinking_of(two_heads(), total_steps=5).load_state_dict(state)
    with pytest.raises(ArtifactError, match="version None"):
        shrinking_of(two_heads()).load_state_dict({})


def whole_state(**more: Any) -> dict[str, Any]:
    return shrinking_of(two_heads(), **more).state_dict()


@pytest.mark.parametrize("key", [key for key in whole_state() if key != "version"])
def test_a_state_that_lacks_something(key: str) -> None:
    state = whole_state()
    del state[key]
    with pytest.raises(ArtifactError, match=f"the saved state of Shrinking lacks {key}") as caught:
        shrinking_of(two_heads()).load_state_dict(state)
    assert "state_dict()" in caught.value.hint


def test_a_state_that_is_none_or_is_damaged() -> None:
    shrinking = shrinking_of(two_heads())
    with pytest.raises(ArtifactError, match="lacks network, asked, steps"):
        shrinking.load_state_dict({"version": 1})
    with pytest.raises(ArtifactError, match="state of Shrinking is a list, a mapping was expected"):
        shrinking.load_state_dict([1])  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="the state's table: not a latency table"):
        shrinking.load_state_dict({**shrinking.state_dict(), "table": "{}"})
    with pytest.raises(ArtifactError, match="the state's plan"):
        shrinking.load_state_dict({**shrinking.state_dict(), "removed": "{}"})
    with pytest.raises(ArtifactError, match="selective shrinking is a list"):
        shrinking.load_state_dict({**shrinking.state_dict(), "control": []})


WAYS: dict[str, dict[str, Any]] = {
    "selective": {},
    "controller": {"method": "controller"},
    "magnitude": {"method": "magnitude", "every": None},
    "strength": {"strength": 0.1, "mac_reduction": None, "min_channels": None, "every": None},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_control_s_state_that_lacks_something(way: str) -> None:
    given: dict[str, Any] = {
        "total_steps": 4,
        "mac_reduction": 0.5,
        "min_channels": 2,
        "every": 1,
        **WAYS[way],
    }
    arguments = {key: value for key, value in given.items() if value is not None}

    def fresh() -> Shrinking:
        model = two_heads()
        return Shrinking(model, adam(model), example(), **arguments)

    whole = fresh().state_dict()
    places = [("control",)] + ([("control", "target")] if "target" in whole["control"] else [])
    for place in places:
        inner = whole
        for step in place:
            inner = inner[step]
        for key in inner:
            state = copy.deepcopy(whole)
            holder = state
            for step in place:
                holder = holder[step]
            del holder[key]
            if key in ("target", "tasks") and place == ("control",):
                continue  # checkpoints of earlier versions had none
            with pytest.raises(
                ArtifactError, match=rf"saved .*state of .* (lacks {key}|other channel groups)"
            ):
                fresh().load_state_dict(state)


def test_a_model_on_two_devices() -> None:
    model = two_heads()
    optimizer = adam(model)
    model.depth.to("meta")
    with pytest.raises(ConfigError, match=r"encoder\.0\.weight on cpu, depth\.weight on meta") as caught:
        shrinking_of(model, optimizer)
    assert "one device" in caught.value.hint


def test_inputs_on_another_device() -> None:
    model = two_heads()
    with pytest.raises(ConfigError, match=r"example input 0 is on meta, the model .* on cpu"):
        Shrinking(model, adam(model), example().to("meta"), total_steps=4, mac_reduction=0.5)


def test_a_wrapper_of_several_devices() -> None:
    model = two_heads()
    with pytest.raises(ConfigError, match="DataParallel") as caught:
        shrinking_of(DataParallel(model), adam(model))
    assert "model.module" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mac_reduction": None}, "exactly one budget of .* found none"),
        ({"parameter_reduction": 0.3}, "found mac_reduction and parameter_reduction"),
        ({"strength": 0.1}, "strength is a λ without a target, and mac_reduction is a target"),
        ({"method": "greedy"}, "no method 'greedy'"),
        ({"mac_reduction": None, "latency_ms": 5.0}, "latency_ms needs the target"),
        ({"norm_batches": 3}, "norm_batches"),
        ({"stare": 0.5}, "no option 'stare' here.*start"),
        ({"selective": {"end": 0.5}}, "no option 'selective' here"),
        ({"strength": 0.1, "mac_reduction": None}, "no option 'min_channels' here"),
        (
            {"strength": 0.1, "mac_reduction": None, "method": "controller"},
            "strength is a λ without a target, and method is of a budget",
        ),
        (
            {"strength": 0.1, "mac_reduction": None, "table": TABLE},
            "strength is a λ without a target, and table is of a budget",
        ),
        ({"table": TABLE}, "table .* milliseconds, and mac_reduction .*leave out table"),
        ({"mac_reduction": 1.5}, "mac_reduction"),
        ({"start": 0.7, "end": 0.6}, "start"),
        ({"groups": "filter", "shrink_every": 1}, "shrink_every"),
        ({"align": 0}, "align is 0"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shrinking_of(two_heads(), **arguments)
    assert re.search(message, said(caught.value))
    assert "sparsity.selective" not in said(caught.value)


def test_finishing_before_the_budget_and_going_on_after_the_end() -> None:
    shrinking = shrinking_of(two_heads())
    with pytest.raises(TrainingError, match=r"after step 0 of 4: the budget is not reached") as caught:
        shrinking.finish()
    assert "early=True" in caught.value.hint
    shrinking.finish(early=True)
    for call in (shrinking.step, shrinking.end_epoch, shrinking.finish, shrinking.observe):
        with pytest.raises(TrainingError, match=r"\(\) after finish\(\)"):
            call()


class Prune(nn.Module):
    """A network whose layers have names that sound like settings."""

    def __init__(self) -> None:
        super().__init__()
        self.prune = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.selective = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.selective(self.prune(image))
        return out


def test_names_of_layers_are_said_as_they_are() -> None:
    model = Prune().double()
    with pytest.raises(ConfigError, match=r"^prune\.0\.weight belongs to a channel group"):
        shrinking_of(model, adam(model.selective))


class Unsure(nn.Module):
    """A network whose own error speaks of epochs, which is its author's word."""

    def forward(self, image: Tensor) -> Tensor:
        raise RuntimeError("sparsity.selective.fusion needs more epochs")


def test_words_of_a_user_s_own_error_are_said_as_they_are() -> None:
    model = Unsure()
    model.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    with pytest.raises(CompactError) as caught:
        shrinking_of(model)
    assert "sparsity.selective.fusion needs more epochs" in said(caught.value)


@pytest.mark.slow
def test_what_is_found_while_gradients_are_looked_at_names_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(TorchPruning, "_groups", lambda self: [])
    model = two_heads()
    shrinking = Shrinking(
        model, adam(model), example(), total_steps=4, mac_reduction=0.5, method="taylor", at=0.9
    )
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for look in (shrinking.observe, shrinking.optimizer.step):
        backward(loss_of(model(image), image))
        with pytest.raises(ConfigError, match="finds no group") as caught:
            look()
        assert caught.value.hint == "use method=magnitude"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 1, "every": 1}, "^start 0.2 and end 0.6 leave no step of 1 .*more total_steps"),
        ({"groups": "filter", "shrink_every": 1}, "^shrink_every removes .* leave out shrink_every"),
        ({"min_channels": 0}, "`min_channels`: expected a number of at least 1"),
        ({"schedule": {"ful": 1}}, "unknown key `schedule.ful`.*`schedule.full`"),
        ({"align": 0}, "^align is 0"),
        ({"mac_reduction": None, "parameter_reduction": 1.0}, "`parameter_reduction`: expected"),
        ({"mac_reduction": None, "speedup": 0.5, "target": "torch-cpu"}, "`speedup`: expected"),
        ({"mac_reduction": None, "latency_ms": 0.0, "target": "torch-cpu"}, "`latency_ms`: expected"),
        (
            {"method": "group_norm", "every": None, "regularize": 0.9, "at": 0.5},
            "^regularize 0.9 .*before at",
        ),
    ],
)
def test_settings_are_called_by_their_arguments(arguments: dict[str, Any], message: str) -> None:
    given = {**{"total_steps": 4, "mac_reduction": 0.5, "every": 1}, **arguments}
    model = two_heads()
    with pytest.raises(ConfigError) as caught:
        Shrinking(model, adam(model), example(), **{k: v for k, v in given.items() if v is not None})
    assert re.search(message, said(caught.value), re.DOTALL)


def test_an_average_of_something_else() -> None:
    model = two_heads()
    shrinking = shrinking_of(model)
    with pytest.raises(ConfigError, match="an average that does not belong"):
        shrinking.finish(AveragedModel(model), early=True)
    with pytest.raises(ConfigError, match="average 0 is of another network"):
        shrinking_of(model, averages=AveragedModel(TwoHeads(width=24).double()))


def test_the_object_is_found_beside_what_decides() -> None:
    import compactmtl
    from compactmtl.sparsity import Shrinking as beside

    assert beside is compactmtl.Shrinking
