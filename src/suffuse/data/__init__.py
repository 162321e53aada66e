"""Data sets as dictionaries of tensors: "x" is the data, every other entry a condition by name.

What is larger than memory obeys the same: a set gives rows by number, a stream gives records in order, and `draws`
makes of any of them the sequence that training takes. See `suffuse.data.draws`.
"""

from suffuse.data import shapes, toys
from suffuse.data.augment import RandomCrop, RandomFlip
from suffuse.data.decode import Findings
from suffuse.data.digits import digits
from suffuse.data.draws import Draws, Rows, Stream, Tensors, draws, part, shard
from suffuse.data.folder import images
from suffuse.data.hugging_face import hugging_face
from suffuse.data.latents import Latents, latents
from suffuse.data.local import cifar10, emoji, fashion_mnist, mnist
from suffuse.data.npz import npz
from suffuse.data.pictures import Pictures
from suffuse.data.shards import webdataset

__all__ = [
    "Draws",
    "Findings",
    "Latents",
    "Pictures",
    "RandomCrop",
    "RandomFlip",
    "Rows",
    "Stream",
    "Tensors",
    "cifar10",
    "digits",
    "draws",
    "emoji",
    "fashion_mnist",
    "hugging_face",
    "images",
    "latents",
    "mnist",
    "npz",
    "part",
    "shapes",
    "shard",
    "toys",
    "webdataset",
]
