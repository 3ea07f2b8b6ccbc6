"""The families of models whose weights we read and write."""

from __future__ import annotations

from funprop.models.pretrained.config import Config, Family
from funprop.models.pretrained.gpt2 import GPT2
from funprop.models.pretrained.llama import LLAMA

FAMILIES = {family.name: family for family in (GPT2, LLAMA)}


def family_of(config: Config) -> Family:
    """The family of models that a configuration is of.

    Raises:
      ValueError: of one that we do not have, or of a model that is no language model.

    Example:
      >>> family_of(Config({"model_type": "gpt2"}, "config.json")).architectures[0]
      'GPT2LMHeadModel'
    """
    if not config.given("model_type"):
        raise ValueError(f"{config.where}: model_type must be there, one of {', '.join(FAMILIES)}")
    family: Family = config.choice("model_type", "", FAMILIES)
    classes = config.entries.get("architectures") or list(family.architectures[:1])
    if not isinstance(classes, list) or not set(map(str, classes)) <= set(family.architectures):
        raise config.unsupported("architectures", family.architectures)
    config.none("quantization_config", "weights must be of floating dtype")
    return family
