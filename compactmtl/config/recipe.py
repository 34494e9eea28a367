"""The recipe: everything that determines a training run, typed and frozen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.augment import AugmentConfig as AugmentConfig
from compactmtl.config.balancing import BalancingConfig, RegularizationConfig
from compactmtl.config.distillation import DistillationConfig as DistillationConfig
from compactmtl.config.encoder import EncoderConfig as EncoderConfig
from compactmtl.config.inputs import AVERAGE, IMAGE, OF_ONE, InputConfig, check_inputs
from compactmtl.config.model import HeadConfig as HeadConfig
from compactmtl.config.model import ModelConfig as ModelConfig
from compactmtl.config.overparam import OverparamConfig
from compactmtl.config.passes import check_passes
from compactmtl.config.pseudo_labels import PseudoLabeled, check_pseudo_labels
from compactmtl.config.registry import names_schema, one_of
from compactmtl.config.schema import Frozen as Frozen
from compactmtl.config.schema import Positive as Positive
from compactmtl.config.schema import Scalar as Scalar
from compactmtl.config.schema import ScheduleConfig as ScheduleConfig
from compactmtl.config.schema import Share as Share
from compactmtl.config.sources import Sourced, check_sources, check_tasks
from compactmtl.config.sparsity import SelectiveConfig as SelectiveConfig
from compactmtl.config.sparsity import SparsityConfig as SparsityConfig
from compactmtl.config.train import EmaConfig as EmaConfig
from compactmtl.config.train import OptimizerConfig as OptimizerConfig
from compactmtl.config.train import TrainConfig as TrainConfig

TaskKind = Annotated[str, one_of("tasks/kinds", own_class=True), names_schema("tasks/kinds", own_class=True)]


class DataConfig(Sourced, PseudoLabeled):
    """The data set, or several of them, the input size and the batches."""

    name: str = Field(
        "",
        description="Data set by name, such as `scenes` or `utkface`, or a class of your own as "
        "`package.module:Class`. It must be given unless there are `sources`, from which it follows.",
    )
    root: str | None = Field(None, description="Folder of the data set. Generated data sets need none.")
    size: tuple[int, int] = Field(description="Height and width of the network's input in pixels.")
    resize: Literal["stretch", "letterbox", "crop"] = Field(
        "stretch",
        description="How an image of another shape gets `size`: `stretch` scales each side on its own; `letterbox` keeps "
        "the shape and pads, and padding counts in no loss and no metric of maps; `crop` keeps the shape and cuts off "
        "what is over at two sides.",
    )
    channels: Annotated[int, Field(ge=1)] = Field(
        3,
        description="Channels of an image: 1 gray, 3 RGB, 4 RGBA; any other number is that of bands in `.tif` and `.npy` "
        "files.",
    )
    range: tuple[float, float] | None = Field(
        None,
        description="Values of a file that become 0 and 255, of files with more than 8 bits a value; what lies beyond is "
        "clipped. null: 0 and 65535 for 16 bits, and other numbers, such as floating-point ones, are refused.",
    )
    inputs: dict[str, InputConfig] = Field(
        default_factory=dict,
        exclude_if=lambda inputs: (
            not inputs
        ),  # a recipe of one picture reads as it did before there were several
        description="Inputs of `model.factory`'s network by name, such as `rgb` and `depth`, where it takes more than one "
        "picture or names what it takes. Its forward is called with them by these names. By default the one picture that "
        "`channels`, `range`, `mean` and `std` describe.",
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="Images per optimizer step.")
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="Processes that load data. With 0 the training process loads it itself."
    )
    cache: Literal["memory", "disk", "none"] = Field(
        "memory", description="Where decoded and resized samples are kept between epochs."
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise",
        description="What becomes of a training sample that cannot be read: `raise` ends the training; with `skip` the next sample "
        "that can be read takes its place, which is counted and reported. Other splits always raise.",
    )
    holdout: Share = Field(
        0.0,
        description="Share of the training split that is set aside as the split `holdout`, for model "
        "selection.",
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Share of the training split, after `holdout`, that is used. A smaller share is a "
        "subset of a larger one.",
    )
    select_on: Literal["val", "holdout"] = Field("val", description="Split that selects the best epoch.")
    augment: AugmentConfig = Field(AugmentConfig(), description="Random transforms of the training split.")
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406),
        description="Subtracted from values in [0, 1], one for each channel. The default is ImageNet's, which most "
        "pretrained encoders expect; of other than 3 channels its average over red, green and blue, 0.449.",
    )
    std: tuple[Positive, ...] = Field(
        (0.229, 0.224, 0.225),
        description="Divisor of values in [0, 1] after `mean` is subtracted, one for each channel. The default is "
        "ImageNet's; of other than 3 channels its average, 0.226.",
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Options of this data set. `compactmtl data check NAME` lists them."
    )

    @model_validator(mode="after")
    def _holdout(self) -> DataConfig:
        if min(self.size) < 1:
            raise ValueError(f"size needs positive height and width, found {list(self.size)}")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range needs low < high, found {list(self.range)}")
        for key, average in AVERAGE.items():
            if self.channels != 3 and key not in self.model_fields_set:
                # The default follows the channels. A factory would too, but then no value would count as the default.
                object.__setattr__(self, key, (average,) * self.channels)
            if len(values := getattr(self, key)) != self.channels:
                raise ValueError(
                    f"{key} needs one value for each of the {self.channels} channels, found {len(values)}"
                )
        if self.select_on == "holdout" and self.holdout == 0:
            raise ValueError("select_on: holdout needs holdout > 0")
        if self.on_error == "skip" and self.pseudo_labels:
            raise ValueError(
                "data.on_error: skip does not go with data.pseudo_labels, whose teachers read every image before training; mend the images, "
                "or leave one of the two out"
            )
        check_sources(self)
        if self.inputs:
            check_inputs(self.inputs, {key: getattr(self, key) for key in OF_ONE}, several=bool(self.sources))
        return self

    @property
    def given(self) -> dict[str, InputConfig]:
        """What the network is given, by name: `inputs`, or the one picture as `image`."""
        if self.inputs:
            return self.inputs
        one = InputConfig(channels=self.channels, range=self.range, mean=self.mean, std=self.std)
        return {IMAGE: one}

    @property
    def first(self) -> str:
        """The first picture's name: targets, predictions and pictures in reports are of it."""
        return next(name for name, one in self.given.items() if one.is_picture)

    @property
    def picture(self) -> InputConfig:
        """The first picture."""
        return self.given[self.first]

    @property
    def others(self) -> dict[str, InputConfig]:
        """What the network is given beside the first picture."""
        return {name: one for name, one in self.inputs.items() if name != self.first}


class TaskConfig(Frozen):
    """One output of the network with its target, loss and head."""

    kind: TaskKind = Field(
        description="Kind of task by name, or a class of your own as `package.module:Class`. It decides the target's "
        "format, the losses and the metrics."
    )
    target: str | None = Field(
        None, description="Name of the target in the data set. By default the task's own name."
    )
    loss: str | None = Field(
        None, description="Name of a loss of this kind of task. By default the first one of the kind."
    )
    weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Factor of the task's loss, applied before balancing."
    )
    head: HeadConfig | None = Field(
        None,
        description="Head of the task. By default `linear` for one value per image, `fcn` for maps, "
        "`instances` for instances.",
    )
    options: dict[str, Scalar] = Field(default_factory=dict, description="Options of this kind of task.")


class SurgeryConfig(Frozen):
    """How dead channels are removed."""

    align: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Keep channel counts at multiples of this number. `auto` takes what the recipe's "
        "targets run best.",
    )
    unreached: Literal["keep", "report", "error"] = Field(
        "keep",
        description="What to do about modules that the deployed forward pass does not reach: `keep` all "
        "that they read, `report` them, or raise an `error`.",
    )


class Recipe(Frozen):
    """A whole training run."""

    description: str = Field("", description="One line for `compactmtl recipes list`.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = Field(  # what torch takes
        0, description="Seed of all random numbers."
    )
    data: DataConfig = Field(description="Data set, input size and batches.")
    tasks: dict[str, TaskConfig] = Field(
        min_length=1, description="The outputs of the model by name, at least one."
    )
    model: ModelConfig = Field(ModelConfig(), description="The network.")
    train: TrainConfig = Field(TrainConfig(), description="The training loop.")
    balancing: BalancingConfig = Field(
        BalancingConfig(), description="How the losses of the tasks, or their gradients, are combined."
    )
    regularization: RegularizationConfig = Field(
        RegularizationConfig(), description="Penalties on the shared features and on the loss."
    )
    overparam: OverparamConfig | None = Field(
        None, description="Factorized layers while training. null: plain layers."
    )
    sparsity: SparsityConfig | None = Field(
        None, description="Structured sparsity while training. null: none."
    )
    distillation: DistillationConfig | None = Field(None, description="A teacher for all tasks. null: none.")
    surgery: SurgeryConfig = Field(SurgeryConfig(), description="How dead channels are removed.")
    targets: tuple[str, ...] = Field(
        ("onnxruntime-cpu",), description="Deployment targets by name, for the command export."
    )
    single_task: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="Metrics of single-task networks (task → metric → value), against which the log shows"
        " Δm.",
    )

    @model_validator(mode="after")
    def _sources_of_tasks(self) -> Recipe:
        sparsity, overparam = self.sparsity, self.overparam
        replaced = {
            "train.ema": self.train.ema is not None,
            "sparsity.norm_batches": sparsity is not None and sparsity.norm_batches is not None,
            "sparsity.selective.losses": sparsity is not None and bool(sparsity.losses),
            "overparam.kind: repvgg": overparam is not None and overparam.kind == "repvgg",
            "overparam.per_task": overparam is not None and overparam.per_task,
            "train.mixup": self.train.mixup is not None and self.data.mixing.batches == "joined",
        }
        check_tasks(
            self.data,
            {name: task.target for name, task in self.tasks.items()},
            distilled=self.distillation is not None,
            replaced=[key for key, taken in replaced.items() if taken],
        )
        check_pseudo_labels(self.data, {name: task.target or name for name, task in self.tasks.items()})
        return self

    @model_validator(mode="after")
    def _passes(self) -> Recipe:
        data = self.data
        by_source = bool(data.sources) and data.mixing.batch_norm == "per_source"
        check_passes(
            self.train,
            self.balancing,
            self.regularization,
            batch_size=data.batch_size,
            by_source=by_source,
        )
        return self

    @property
    def images_at_once(self) -> int:
        """The images of a batch that are passed together: all, or with `train.accumulate` those of its largest part."""
        return -(-self.data.batch_size // self.train.accumulate)

    @model_validator(mode="after")
    def _one_weight_to_shrink(self) -> Recipe:
        if self.sparsity is not None and self.overparam is not None and self.overparam.per_task:
            raise ValueError(
                "overparam.per_task: sparsity needs one weight for all tasks; remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _parts_of_ones_own(self) -> Recipe:
        """A network of the user's own is built whole: nothing else of the recipe builds a part of it."""
        if self.model.factory is None:
            if self.data.inputs:
                raise ValueError(
                    f"data.inputs: model.encoder takes one picture, and {', '.join(self.data.inputs)} are named; give a "
                    "network that takes them as model.factory, or leave inputs out"
                )
            return self
        for name, task in self.tasks.items():
            if task.head is not None:
                raise ValueError(
                    f"tasks.{name}.head: model.factory builds the heads; leave it out (null drops an inherited one)"
                )
        if strangers := sorted(set(self.model.head_paths) - set(self.tasks)):
            raise ValueError(f"model.head_paths names {', '.join(strangers)}, which is no task")
        if self.overparam is not None and self.overparam.per_task:
            raise ValueError(
                "overparam.per_task copies a recipe's own encoder; leave it out with model.factory"
            )
        dgr = self.regularization.dgr
        if dgr is not None and (dgr.head.width is not None or dgr.head.depth is not None):
            raise ValueError(
                "regularization.dgr.head: dummies of model.factory have the heads' own width and depth; leave both out"
            )
        return self

    @model_validator(mode="after")
    def _features_to_compare(self) -> Recipe:
        if self.balancing.at == "features" and self.overparam is not None and self.overparam.per_task:
            raise ValueError(
                "balancing.at: features are not shared where overparam.per_task gives each task its own; "
                "use shared_parameters"
            )
        return self

    @model_validator(mode="after")
    def _features_to_distill(self) -> Recipe:
        features = self.distillation is not None and self.distillation.features is not None
        if features and self.overparam is not None and self.overparam.per_task:
            raise ValueError(
                "distillation.features: features are not shared where overparam.per_task gives each task its own; "
                "remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _plain_where_it_shrinks(self) -> Recipe:
        if self.sparsity is None:
            return self
        self.sparsity.check_held_out(self.tasks, self.data.holdout)
        if self.sparsity.shrink_every and self.overparam is not None and self.overparam.kind != "none":
            raise ValueError("sparsity.shrink_every needs plain layers; remove it or overparam")
        if self.sparsity.prune and self.sparsity.prune.method == "group_norm" and self.overparam is not None:
            raise ValueError("sparsity.prune: Torch-Pruning needs plain layers; remove overparam")
        distillation, begin = self.distillation, self.sparsity.begin
        if self.sparsity.shrink_every and distillation and distillation.own and distillation.start > begin:
            raise ValueError(
                f"distillation.start {distillation.start}: the teacher `self` must be copied before channels are "
                f"removed; with sparsity.shrink_every that begins at {begin}"
            )
        return self
