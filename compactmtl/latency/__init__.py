"""Latency tables: what each layer of a network takes on a target, measured on random cuts of the network itself."""

from compactmtl.latency.calibrate import calibrated
from compactmtl.latency.clock import PairedClock
from compactmtl.latency.cuts import Cutter
from compactmtl.latency.fit import Point, fit_layer
from compactmtl.latency.measure import Settings, check_target, latency_table, require
from compactmtl.latency.store import Store
from compactmtl.sparsity.latency import LatencyTable

__all__ = [
    "Cutter",
    "LatencyTable",
    "PairedClock",
    "Point",
    "Settings",
    "Store",
    "calibrated",
    "check_target",
    "fit_layer",
    "latency_table",
    "require",
]
