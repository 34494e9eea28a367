"""Pseudo-task augmentation: several heads learn each task on shared features. Source: arXiv:1803.04062.

The loss of a task is the mean over its heads; the first is the model's own and the only one that is kept. Of the
paper's controls there are I (independent), F (freeze) and P (perturb).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from compactmtl.balancing.dummies import Features, call_head, random_head


class PseudoTasks(nn.Module):
    """The extra heads of each task. Its parameters, where they learn, belong into the optimizer; its state into the
    checkpoint beside the model's.

    Args:
        heads: the model's own heads by task.
        decoders: heads a task, the model's own included.
        control: "independent" heads learn, "freeze" leaves them random, "perturb" also adds noise of standard deviation
            `noise` to them at each epoch's end.
        seed: of weights and noise.
        attention: what heads of kind mtan are given.

    Raises ConfigError for a head whose layers cannot draw weights.
    """

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        decoders: int,
        control: Literal["independent", "freeze", "perturb"],
        *,
        noise: float = 0.01,
        seed: int = 0,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.control, self.noise, self.seed = control, noise, seed
        self.extra = nn.ModuleDict(
            {
                task: nn.ModuleList(
                    random_head(head, f"{task}/pseudo", number, seed) for number in range(decoders - 1)
                )
                for task, head in heads.items()
            }
        )
        self.attend(attention)
        self.learns = control != "freeze"
        self.extra.requires_grad_(self.learns)

    def attend(self, attention: nn.Module | None) -> None:
        """Give heads of kind mtan this attention from now on."""
        self._attention = (attention,)  # in a tuple: not a part of this module

    def heads(self, task: str) -> list[nn.Module]:
        """The extra heads of a task."""
        return list(cast(nn.ModuleList, self.extra[task]))

    def outputs(
        self, features: Features | Mapping[str, Features], size: tuple[int, int] | None
    ) -> dict[str, list[Tensor]]:
        """What the extra heads of each task make of the encoder's output for images of `size`."""
        return {
            task: [
                call_head(
                    head,
                    head,
                    features[task] if isinstance(features, Mapping) else features,
                    size,
                    self._attention[0],
                )
                for head in self.heads(task)
            ]
            for task in self.extra
        }

    def end_epoch(self, epoch: int) -> None:
        """Move the heads at random where the control says so; the noise depends on seed and epoch alone."""
        if self.control != "perturb":
            return
        digest = hashlib.sha256(f"{self.seed}/pseudo/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        with torch.no_grad():
            for parameter in self.extra.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(self.noise * noise.to(parameter.device, parameter.dtype))
