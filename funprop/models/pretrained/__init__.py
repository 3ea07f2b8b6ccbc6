"""Models that others have trained: their configuration as a model of ours, their names as ours."""

from funprop.models.pretrained.config import Config, Family
from funprop.models.pretrained.families import FAMILIES, family_of
from funprop.models.pretrained.rows import Row

__all__ = ["FAMILIES", "Config", "Family", "Row", "family_of"]
