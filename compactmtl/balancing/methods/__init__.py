"""One file a balancing method: its options and what it needs. `balancing.registry` finds it by its name."""
