"""Checkpoints of a run."""

from funprop.train.checkpoints.checkpoints import Checkpoint, Checkpoints, Restored

__all__ = ["Checkpoint", "Checkpoints", "Restored"]
