"""What stands in the place of params: roles, names to choose by, what is trained or updated."""

from funprop.params.frozen import Frozen, trained, with_trained
from funprop.params.roles import Statistic, decayed, is_trained, roles
from funprop.params.selection import by_name, where

__all__ = [
    "Frozen",
    "Statistic",
    "by_name",
    "decayed",
    "is_trained",
    "roles",
    "trained",
    "where",
    "with_trained",
]
