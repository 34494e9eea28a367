"""The training loop of a recipe: epochs, optimizer, schedule, precision, device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compactmtl.config.schema import Frozen, Positive, ScheduleConfig, Share
from compactmtl.config.tracking import MlflowConfig


class OptimizerConfig(Frozen):
    """The optimizer."""

    name: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimizer.")
    lr: Positive = Field(1e-3, description="Peak learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="Weight decay. It does not apply to parameters of sparsity groups."
    )
    momentum: Share = Field(0.9, description="Momentum of SGD.")
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="Decay rates of the moments of Adam and AdamW."
    )
    encoder_scale: Positive = Field(
        1.0,
        description="Learning rate of the encoder as a share of `lr`; the heads keep `lr`. Below 1 for pretrained "
        "encoders.",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Learning rate of each layer of the encoder as a share of the next layer's. The last layer has "
        "`lr` times `encoder_scale`.",
    )

    @property
    def uneven(self) -> bool:
        """Whether the encoder's parameters have rates of their own."""
        return self.encoder_scale != 1 or self.layer_decay != 1


class EmaConfig(Frozen):
    """An exponential moving average of the weights."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.999, description="Share of the average that each step keeps, at most."
    )
    warmup: bool = Field(
        True,
        description="Let the decay rise with the steps t as 1 − (1 + t)^(−2/3), up to `decay`, so that short runs forget "
        "their beginning.",
    )


class TrainConfig(Frozen):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1)] = Field(15, description="Passes over the training split.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Optimizer and its settings.")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="Learning rate over the steps of the run.")
    clip: Positive | None = Field(
        None, description="Largest norm of the gradient. Larger gradients are scaled down. null: no clipping."
    )
    ema: EmaConfig | None = Field(
        None,
        description="Validate, choose and deploy an average of the weights over the steps. null: the weights as they are.",
    )
    mixup: Positive | None = Field(
        None,
        description="Mix each image of a batch with another one, by shares drawn from Beta(a, a) with this a. Only for "
        "tasks of one value or vector per image. null: no mixing.",
    )
    batch_norm: Literal["batch", "frozen"] = Field(
        "batch",
        description="What batch norm normalizes by while training: the statistics of the `batch`, of several processes of "
        "all their parts of it, or the running statistics that the weights came with, which stay (`frozen`).",
    )
    autocast: Literal["off", "bfloat16", "float16"] = Field(
        "off", description="Precision of the forward pass while training."
    )
    accumulate: Annotated[int, Field(ge=1)] = Field(
        1,
        description="Pass each batch of `data.batch_size` images in this many parts, one after the other, of which each needs "
        "memory for its own images alone. Losses and gradients are those of the whole batch, at the price of one more forward "
        "pass; batch norm normalizes each part by its own statistics. 1: all at once.",
    )
    checkpoint_activations: bool = Field(
        False,
        description="Keep what the encoder's blocks are given and compute what is inside them again for the backward pass: less "
        "memory and the same gradients, at the price of one more forward pass of the encoder.",
    )
    compile: bool | Literal["eager", "aot_eager"] = Field(
        False,
        description="Run encoder and heads through torch.compile while training. `true` generates code, for which the machine "
        "needs a C++ compiler, or Triton on a GPU. `eager` and `aot_eager` only trace the network, to find what cannot be "
        "traced.",
    )
    device: str = Field("cpu", description="torch device, such as `cpu` or `cuda:0`.")
    deterministic: bool = Field(
        True,
        description="Bit-equal runs on a GPU: only deterministic kernels; an operator that has none is an error. The CPU "
        "is bit-equal anyhow.",
    )
    tf32: bool = Field(
        False,
        description="Let NVIDIA GPUs multiply float32 in TF32 while training. It is faster, and a product is off by up to "
        "1e-3.",
    )
    channels_last: bool | Literal["auto"] = Field(
        "auto",
        description="Use the NHWC memory layout while training. `auto` takes what is clearly faster for this network on "
        "this machine, timed once before the first such run of 200 steps or more; a shorter one takes NCHW.",
    )
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="CPU threads of torch. null: torch's default."
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stop after this many epochs without a better score. null: train all epochs."
    )
    competition: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0,
        description="Batches per epoch on which the tasks' gradients are compared layer by layer, for the "
        "log and the report. 0: none.",
    )
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stop after this many optimizer steps, for smoke runs. null: no limit."
    )
    mlflow: MlflowConfig | None = Field(
        None,
        description="Log the run to MLflow too, with the extra `mlflow`. null: to the run's folder alone.",
    )
