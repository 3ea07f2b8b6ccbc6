"""Is this backward pass right? Which leaf is wrong, where, and in what way?

`verify` judges a layer, a function or a whole hand-written gradient; `verify_rules` finds every
custom rule that a function reaches, and judges each where it stands. `verify_second_order`
differentiates a rule again, `taylor_test` is for what is too large for all that, and `cost` tells
whether a rule pays. `verify_step` asks whole training steps, of any library. Knows the contract of
layers, and nothing that trains.
"""

from funprop.verify.cost import Cost, cost
from funprop.verify.report import Check, Example, Report
from funprop.verify.rules import verify_rules
from funprop.verify.second_order import verify_second_order
from funprop.verify.subjects.from_pair import from_pair
from funprop.verify.targets import verify
from funprop.verify.taylor import TaylorReport, taylor_test
from funprop.verify.training import StepCheck, StepReport, verify_step

__all__ = [
    "Check",
    "Cost",
    "Example",
    "Report",
    "StepCheck",
    "StepReport",
    "TaylorReport",
    "cost",
    "from_pair",
    "taylor_test",
    "verify",
    "verify_rules",
    "verify_second_order",
    "verify_step",
]
