"""Is this backward pass right? Which leaf is wrong, where, and in what way?

`verify` judges a layer, a function or a whole hand-written gradient; `verify_rules` finds every
custom rule that a function reaches, and judges each where it stands. Knows the contract of layers,
and nothing that trains.
"""

from funprop.verify.report import Check, Example, Report
from funprop.verify.rules import verify_rules
from funprop.verify.targets import verify

__all__ = ["Check", "Example", "Report", "verify", "verify_rules"]
