"""Train, compact, export and verify multi-task vision networks."""

__version__ = "0.1.0"
