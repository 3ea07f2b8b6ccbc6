"""The blocks of a deep model as the stages of a pipeline: schedules, and what runs any of them."""

from funprop.pipelining.picture import schedule_picture
from funprop.pipelining.pipelined import pipeline
from funprop.pipelining.schedule import Schedule, Slot
from funprop.pipelining.schedules import gpipe, one_f_one_b, zero_bubble

__all__ = [
    "Schedule",
    "Slot",
    "gpipe",
    "one_f_one_b",
    "pipeline",
    "schedule_picture",
    "zero_bubble",
]
