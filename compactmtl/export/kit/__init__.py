"""Device kits: a folder that measures a model where there is only its runtime, and the way of its results back."""

from __future__ import annotations
