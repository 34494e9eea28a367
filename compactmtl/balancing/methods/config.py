"""ConFIG, a direction at equal angles to all gradients. Source: arXiv:2408.11104."""

from __future__ import annotations

from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated, PreferenceOptions, preference


class ConFIG(Aggregated):
    """TorchJD's ConFIG, a direction at equal angles to all gradients."""

    class Options(PreferenceOptions):
        """How much each task is preferred."""

    options: Options
    reads = "root"

    def make(self) -> jd.Aggregator:
        return jd.ConFIG(preference(self.options))
