"""Artifacts on disk: names, atomic writes, hashes, versions of a checkpoint, and the lock of a run folder.

Nothing here knows a model; every stage that writes or reads a run goes through this room.
"""
