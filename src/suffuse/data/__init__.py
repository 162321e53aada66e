"""Data sets as dictionaries of tensors: "x" is the data, every other entry a condition by name."""

from suffuse.data import shapes
from suffuse.data.digits import digits

__all__ = ["digits", "shapes"]
