"""Teachers: a finished run, another encoder, or the network itself as it was earlier, all frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import timm
import torch
from torch import Tensor, nn

from compactmtl.config.distillation import FeatureDistillationConfig
from compactmtl.config.recipe import DataConfig
from compactmtl.data.inputs import Images, each, parts
from compactmtl.errors import CompactError, ConfigError
from compactmtl.graph.copies import copy_model
from compactmtl.models import MultiTaskModel
from compactmtl.models.build import encoder_for
from compactmtl.models.features import encoder_of, tensors_in
from compactmtl.models.multitask import TaskEncoders
from compactmtl.models.packaged import package_of
from compactmtl.runs.run import Run
from compactmtl.runs.teachers import teacher_path
from compactmtl.train.part import Setup

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std that images are normalized with


class Teacher:
    """A network in eval mode, none of whose parameters trains.

    `network` is a MultiTaskModel, or an encoder alone, which has no outputs to teach. It is given the images as its own
    training had them: `shown` is how they come, `known` how it knows them.
    """

    def __init__(self, network: nn.Module, shown: Statistics, known: Statistics | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self._change = _change(shown, known or shown)

    @torch.no_grad()
    def features(self, image: Images) -> Any:
        """What the teacher's encoder gives for the recipe's images (B, C, H, W), or its inputs."""
        image, network = self._known(image), self.network
        return network.features(image) if isinstance(network, MultiTaskModel) else network(*parts(image))

    def shapes(self, inputs: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        """The shapes of its features for example inputs."""
        return [
            tuple(level.shape) for level in levels_of(self.features(inputs if len(inputs) > 1 else inputs[0]))
        ]

    @torch.no_grad()
    def look(self, image: Images, names: Iterable[str]) -> tuple[Any, dict[str, Tensor]]:
        """Its features for the recipe's images (B, 3, H, W), and the raw outputs of some tasks."""
        assert isinstance(self.network, MultiTaskModel)
        features, outputs = self.network.pass_through(self._known(image))
        return features, {name: outputs[name].float() for name in names}

    def _known(self, image: Images) -> Images:
        """The images as its own training had them; of several inputs nothing differs (see `run_teacher`)."""
        if self._change is None:
            return image
        scale, offset = self._change
        return each(lambda one: one * scale.to(one) + offset.to(one), image)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over its weights and buffers, with their names."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def levels_of(features: Any) -> list[Tensor]:
    """An encoder's features as a list: of one vector (B, C), one map (B, C, h, w), or several maps."""
    return tensors_in(features)  # the recipe is refused where each task has its own


def statistics(data: DataConfig) -> Statistics:
    """The mean and standard deviation that images are normalized with."""
    return data.mean, data.std


def earlier_self(model: MultiTaskModel, data: DataConfig) -> Teacher:
    """The model as it is now."""
    return Teacher(copy_model(model), statistics(data))


def run_teacher(setup: Setup, name: str) -> Teacher:
    """The best checkpoint of the run `name`, contracted.

    Raises ConfigError or ArtifactError where it has not finished or has seen images of another size.
    """
    recipe = setup.recipe
    run = Run.open(teacher_path(recipe, name))
    if not run.finished:
        raise ConfigError(f"distillation: the teacher {run.path} has not finished", "train it first")
    if run.recipe.data.size != recipe.data.size:
        raise ConfigError(
            f"distillation: the teacher was trained on {list(run.recipe.data.size)} pixels, the recipe has {list(recipe.data.size)}",
            "name a run of the same size",
        )
    for key in ("resize", "channels", "range", "inputs"):
        theirs, ours = getattr(run.recipe.data, key), getattr(recipe.data, key)
        if theirs != ours:
            raise ConfigError(
                f"distillation: the teacher was trained with data.{key}={_shown(theirs)}, the recipe has {_shown(ours)}",
                f"name a run whose images are prepared alike, or set data.{key}",
            )
    model = run.load_plain()
    if isinstance(encoder_of(model), TaskEncoders):
        raise ConfigError(
            f"distillation: the teacher {run.path} has an encoder for each task, so its features are not one network's",
            "name a run without overparam.per_task",
        )
    return Teacher(model.to(setup.device), statistics(recipe.data), statistics(run.recipe.data))


def _shown(value: Any) -> str:
    """A value of `data` as a message names it: of inputs each with its values."""
    if not isinstance(value, dict):
        return str(value)
    return "; ".join(f"{name}: {one}" for name, one in value.items()) or "none"


def encoder_teacher(setup: Setup, config: FeatureDistillationConfig) -> Teacher:
    """The encoder that `distillation.features.encoder` names, with the outputs that the recipe's heads read.

    Raises what `build_encoder` raises, under the key's own name.
    """
    recipe, encoder = setup.recipe, config.encoder
    assert encoder is not None
    if recipe.data.inputs:
        raise ConfigError(
            f"distillation.features.encoder takes one picture, and data.inputs names {', '.join(recipe.data.inputs)}",
            "take a run with the same inputs as the teacher, or `self`",
        )
    try:
        with torch.random.fork_rng(devices=[]):  # weights that are drawn and then replaced
            network = encoder_for(recipe, setup.tasks, encoder).module
    except CompactError as error:
        place = "distillation.features.encoder"
        raise type(error)(
            error.message.replace("model.encoder", place), error.hint.replace("model.encoder", place)
        ) from error
    mean, std = _statistics_of_encoder(config) or statistics(recipe.data)
    if recipe.data.channels != 3 and len(mean) == 3:  # those of RGB weights, which were adapted
        mean, std = ((sum(values) / 3,) * recipe.data.channels for values in (mean, std))
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values is not None and len(values) != recipe.data.channels:
            raise ConfigError(
                f"distillation.features.{key} needs one value for each of the {recipe.data.channels} channels, "
                f"found {len(values)}",
                "give as many as data.channels says",
            )
    return Teacher(
        network.to(setup.device), statistics(recipe.data), (config.mean or mean, config.std or std)
    )


def _statistics_of_encoder(config: FeatureDistillationConfig) -> Statistics | None:
    encoder = config.encoder
    assert encoder is not None
    if (package := package_of(encoder.weights or "")) is not None:
        return package.mean, package.std
    known = timm.get_pretrained_cfg(encoder.name) if encoder.pretrained and encoder.weights is None else None
    return (tuple(known.mean), tuple(known.std)) if known is not None else None


def _change(shown: Statistics, known: Statistics) -> tuple[Tensor, Tensor] | None:
    """Scale and offset (C, 1, 1) that turn images normalized with `shown` into those of `known`; none where they agree."""
    if tuple(map(tuple, shown)) == tuple(map(tuple, known)):
        return None
    (mean, std), (own_mean, own_std) = (
        [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in one] for one in (shown, known)
    )
    return (std / own_std).float(), ((mean - own_mean) / own_std).float()


def check_tasks(teacher: Teacher, tasks: Mapping[str, Any]) -> None:
    """Raise ConfigError for a task whose outputs the teacher does not have."""
    for name in tasks:
        if isinstance(teacher.network, MultiTaskModel) and name not in teacher.network.task_names:
            raise ConfigError(
                f"distillation: the teacher has no task {name}", "name a run that was trained on all tasks"
            )
