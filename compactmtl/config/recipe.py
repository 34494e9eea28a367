"""The recipe: everything that decides a training run, typed and frozen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.balancing import BalancingConfig, RegularizationConfig
from compactmtl.config.kinds import TaskKind
from compactmtl.config.overparam import OverparamConfig
from compactmtl.config.schema import Frozen as Frozen
from compactmtl.config.schema import Positive as Positive
from compactmtl.config.schema import Scalar as Scalar
from compactmtl.config.schema import ScheduleConfig as ScheduleConfig
from compactmtl.config.schema import Share as Share
from compactmtl.config.sparsity import SelectiveConfig as SelectiveConfig
from compactmtl.config.sparsity import SparsityConfig as SparsityConfig


class AugmentConfig(Frozen):
    """Random joint transforms of an image and all its targets, training split only."""

    flip: bool = Field(False, description="mirror left-right with probability 1/2")
    zoom: tuple[float, float] = Field(
        (1.0, 1.0), description="scale range of a random zoom-and-crop; depth is divided by the scale"
    )
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        0.0, description="largest angle of a random turn about the middle, in degrees"
    )
    shift: Annotated[int, Field(ge=0)] = Field(
        0, description="pad by this many pixels and crop back at random"
    )
    color: Share = Field(0.0, description="strength of brightness, contrast and saturation jitter")

    @model_validator(mode="after")
    def _zoom_range(self) -> AugmentConfig:
        low, high = self.zoom
        if not 1.0 <= low <= high:
            raise ValueError(f"zoom needs 1 <= low <= high, found [{low}, {high}]")
        return self

    @property
    def moves(self) -> bool:
        """Whether pixels change their places: any key but the colors' differs from its default."""
        return self.model_copy(update={"color": 0.0}) != AugmentConfig()


class DataConfig(Frozen):
    """Which data set, at what size, in what batches."""

    name: str = Field(description="data set: a module of compactmtl.data, such as scenes or utkface")
    root: str | None = Field(None, description="folder of the data set; none for generated data")
    size: tuple[int, int] = Field(description="height and width in pixels that the network sees")
    batch_size: Annotated[int, Field(ge=1)] = 32
    workers: Annotated[int, Field(ge=0)] = Field(0, description="loader processes; 0 loads in line")
    cache: Literal["memory", "disk", "none"] = Field(
        "memory", description="where decoded, resized samples are kept between epochs"
    )
    holdout: Share = Field(
        0.0, description="share of the training split set aside as split `holdout`, for selection"
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="share of the training split that is trained on, after `holdout`; a smaller one is a part of a "
        "larger one",
    )
    select_on: Literal["val", "holdout"] = Field("val", description="split watched while training")
    augment: AugmentConfig = AugmentConfig()
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406),
        description="subtracted from RGB in [0, 1]; the default is ImageNet's, which most pretrained encoders expect",
    )
    std: tuple[Positive, Positive, Positive] = Field(
        (0.229, 0.224, 0.225), description="RGB in [0, 1] is divided by this after `mean` is subtracted"
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="options of this data set; see `data check NAME`"
    )

    @model_validator(mode="after")
    def _holdout(self) -> DataConfig:
        if min(self.size) < 1:
            raise ValueError(f"size needs positive height and width, found {list(self.size)}")
        if self.select_on == "holdout" and self.holdout == 0:
            raise ValueError("select_on: holdout needs holdout > 0")
        return self


class HeadConfig(Frozen):
    """The part of the network that belongs to one task."""

    kind: Literal["linear", "mlp", "fcn", "deeplabv3", "deeplabv3plus", "mtan", "instances"] = "linear"
    width: Annotated[int, Field(ge=1)] = Field(
        64, description="hidden channels or features; DeepLab's papers have 256"
    )
    depth: Annotated[int, Field(ge=0)] = Field(1, description="hidden layers before the last one")
    dropout: Share = 0.0
    rates: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        description="DeepLab's dilations; by default 6, 12, 18 at an output stride of 16 and in proportion at others",
    )
    predictor: Literal["fcn", "deeplabv3"] = Field("fcn", description="what follows a mtan head's attention")


class TaskConfig(Frozen):
    """One output of the network with its target, loss and head."""

    kind: TaskKind = Field(
        description="a kind of task by name, or a class of your own as package.module:Class"
    )
    target: str | None = Field(None, description="name of the target in the data set; the task's by default")
    loss: str | None = Field(None, description="a loss of this kind of task; its first by default")
    weight: Annotated[float, Field(ge=0)] = 1.0
    head: HeadConfig | None = Field(
        None, description="linear for one value an image, fcn for maps, instances for instances by default"
    )
    options: dict[str, Scalar] = Field(default_factory=dict, description="options of this kind of task")


class EncoderConfig(Frozen):
    """The shared trunk, any timm model by name, or segnet."""

    name: str = "resnet18"
    pretrained: bool = Field(False, description="fetch timm's weights by name")
    weights: str | None = Field(
        None,
        description="a local .safetensors or .pth file of encoder weights, or `package:NAME` for weights that an installed "
        "package holds: efficientnet-lite0, efficientnet-lite1, efficientnet-lite2 (extra `pretrained`)",
    )
    output_stride: Literal[8, 16, 32] | None = Field(None, description="dilate to keep this stride")
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="passed to timm.create_model; out_index picks the feature map (the last by default); "
        "segnet has width and unpool",
    )


class ModelConfig(Frozen):
    """One encoder; the heads belong to the tasks."""

    encoder: EncoderConfig = EncoderConfig()


class OptimizerConfig(Frozen):
    """AdamW, Adam or SGD with its usual knobs."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Share = Field(0.9, description="SGD's momentum")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's moment decay rates")


class TrainConfig(Frozen):
    """The loop."""

    epochs: Annotated[int, Field(ge=1)] = 15
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: Positive | None = Field(None, description="largest gradient norm; none for no clipping")
    autocast: Literal["off", "bfloat16", "float16"] = "off"
    device: str = Field("cpu", description="torch device, such as cpu or cuda:0")
    channels_last: bool = Field(False, description="NHWC memory layout while training")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="torch CPU threads")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="stop after this many epochs without a better score"
    )
    competition: Annotated[int, Field(ge=0)] = Field(
        0, description="batches an epoch on which the tasks' gradients are compared layer by layer"
    )
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="stop after this many optimizer steps, for smoke runs"
    )


class DistillationConfig(Frozen):
    """Each task also learns from what a teacher gives for the same pictures."""

    teacher: str = Field(
        "self",
        description="self: the model as it was at `start`; or a finished run's folder, in which {seed} is the recipe's",
    )
    start: Share = Field(0.2, description="share of all steps after which the teacher is heard")
    weight: Positive = Field(1.0, description="of the teacher's loss beside the targets'")
    temperature: Positive = Field(2.0, description="softens class probabilities of teacher and student")


class SurgeryConfig(Frozen):
    """How dead channels are removed."""

    align: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="keep channel counts at multiples of this; auto: what the recipe's targets run best",
    )
    unreached: Literal["keep", "report", "error"] = Field(
        "keep",
        description="modules that the deployed forward does not reach: keep what they read, report or refuse",
    )


class Recipe(Frozen):
    """A whole training run."""

    description: str = Field("", description="one line for `recipes list`")
    seed: int = 0
    data: DataConfig
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    balancing: BalancingConfig = BalancingConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    overparam: OverparamConfig | None = None
    sparsity: SparsityConfig | None = None
    distillation: DistillationConfig | None = None
    surgery: SurgeryConfig = SurgeryConfig()
    targets: tuple[str, ...] = Field(("onnxruntime-cpu",), description="export targets by name")
    single_task: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="single-task metrics (task -> metric -> value), to show Δm against"
    )

    @model_validator(mode="after")
    def _one_weight_to_shrink(self) -> Recipe:
        if self.sparsity is not None and self.overparam is not None and self.overparam.per_task:
            raise ValueError(
                "overparam.per_task: sparsity needs one weight for all tasks; remove one of the two"
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
    def _plain_where_it_shrinks(self) -> Recipe:
        if self.sparsity is None:
            return self
        if self.sparsity.shrink_every and self.overparam is not None and self.overparam.kind != "none":
            raise ValueError("sparsity.shrink_every removes channels of plain layers; remove it or overparam")
        if self.sparsity.prune and self.sparsity.prune.method == "group_norm" and self.overparam is not None:
            raise ValueError("sparsity.prune: Torch-Pruning reads plain layers; remove overparam")
        begin = self.sparsity.begin
        own = self.distillation is not None and self.distillation.teacher == "self"
        if self.sparsity.shrink_every and own and self.distillation and self.distillation.start > begin:
            raise ValueError(
                f"distillation.start {self.distillation.start}: a teacher that is the model itself comes before channels "
                f"go, which may be from {begin} on where sparsity.shrink_every is set"
            )
        return self
