"""Folders of models as Hugging Face's transformers writes them."""

from funprop.train.pretrained.loaded import Pretrained
from funprop.train.pretrained.reading import from_pretrained
from funprop.train.pretrained.writing import to_pretrained

__all__ = ["Pretrained", "from_pretrained", "to_pretrained"]
