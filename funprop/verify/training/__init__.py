"""Is a whole training step right, whoever wrote it? Each check is a law that updates must hold."""

from funprop.verify.training.report import StepCheck, StepReport
from funprop.verify.training.verify_step import verify_step

__all__ = ["StepCheck", "StepReport", "verify_step"]
