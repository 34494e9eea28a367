"""Aligned-MTL, gradients whose singular values are made equal. Source: Senushkin et al., CVPR 2023."""

from __future__ import annotations

from typing import Literal

from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated, PreferenceOptions, preference


class AlignedMTL(Aggregated):
    """TorchJD's Aligned-MTL, gradients whose singular values are made equal."""

    class Options(PreferenceOptions):
        """`scale_mode`: which singular value the others are brought to."""

        scale_mode: Literal["min", "median", "rmse"] = "min"

    options: Options

    def make(self) -> jd.Aggregator:
        return jd.AlignedMTL(preference(self.options), self.options.scale_mode)
