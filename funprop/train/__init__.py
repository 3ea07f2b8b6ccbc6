"""The shell around the pure core: data in, epochs run, progress shown, files written."""

from funprop.train import callbacks
from funprop.train.checkpoints import Checkpoint, Checkpoints, Restored
from funprop.train.data.records import skip_unreadable
from funprop.train.data.tokens import Tokens
from funprop.train.fit import Fit, fit
from funprop.train.params_file import load, save
from funprop.train.population_table import PopulationTable, population_table
from funprop.train.pretrained import Pretrained, from_pretrained, to_pretrained
from funprop.train.stopping import at_least, at_most, patience
from funprop.train.task import Task

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Fit",
    "PopulationTable",
    "Pretrained",
    "Restored",
    "Task",
    "Tokens",
    "at_least",
    "at_most",
    "callbacks",
    "fit",
    "from_pretrained",
    "load",
    "patience",
    "population_table",
    "save",
    "skip_unreadable",
    "to_pretrained",
]
