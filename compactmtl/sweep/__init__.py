"""Tables over seeds, and searches: many trainings by one command that goes on where it stopped."""

from compactmtl.sweep.jobs import Job, plan_jobs
from compactmtl.sweep.latency import sweep_latencies
from compactmtl.sweep.run import Failure, SweepRuns, collect_runs, exit_code, run_sweep
from compactmtl.sweep.searching import Searching, open_search
from compactmtl.sweep.table import probed, write_table

__all__ = [
    "Failure",
    "Job",
    "Searching",
    "SweepRuns",
    "collect_runs",
    "exit_code",
    "open_search",
    "plan_jobs",
    "probed",
    "run_sweep",
    "sweep_latencies",
    "write_table",
]
