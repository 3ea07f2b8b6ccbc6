"""The shell around the pure core: data in, epochs run, progress shown, files written."""

from funprop.train.checkpoints import Checkpoint, Checkpoints, Restored
from funprop.train.data.records import skip_unreadable
from funprop.train.data.tokens import Tokens
from funprop.train.fit import Fit, fit
from funprop.train.params_file import load, save
from funprop.train.pretrained import Pretrained, from_pretrained, to_pretrained
from funprop.train.stopping import at_least, at_most, patience

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Fit",
    "Pretrained",
    "Restored",
    "Tokens",
    "at_least",
    "at_most",
    "fit",
    "from_pretrained",
    "load",
    "patience",
    "save",
    "skip_unreadable",
    "to_pretrained",
]
