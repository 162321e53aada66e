"""Data sets as dictionaries of tensors: "x" is the data, every other entry a condition by name.

What is larger than memory obeys the same: a set gives rows by number, a stream gives records in order, and `draws`
makes of any of them the sequence that training takes. See `suffuse.data.draws`.
"""

from suffuse.data import shapes
from suffuse.data.digits import digits
from suffuse.data.draws import Draws, Rows, Stream, Tensors, draws, part, shard
from suffuse.data.folder import images
from suffuse.data.pictures import Pictures

__all__ = ["Draws", "Pictures", "Rows", "Stream", "Tensors", "digits", "draws", "images", "part", "shapes", "shard"]
