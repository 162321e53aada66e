"""What is learned beside a network's weights, on any network: LoRA, DoRA, new words, DreamBooth.

model = sf.adapters.lora(model, rank=8)                       # bit for bit the model, until it is trained
learned = sf.adapters.Learned(model)
sf.fit(lambda _, batch: sf.losses.denoising(model, batch), data, learned, steps=500)
sf.adapters.save_lora(model, "style.safetensors", form="kohya")
"""

from __future__ import annotations

from suffuse.adapters.dreambooth import own, prior_preserving
from suffuse.adapters.files import load_lora, save_lora
from suffuse.adapters.learned import Learned
from suffuse.adapters.low_rank import DoRA, LoRA, baked, detached, lora, merged, scaled, share, unmerged
from suffuse.adapters.places import ATTENTION, copied, matching
from suffuse.adapters.words import fixed, load_word, new_word, save_word

__all__ = [
    "ATTENTION",
    "DoRA",
    "Learned",
    "LoRA",
    "baked",
    "copied",
    "detached",
    "fixed",
    "load_lora",
    "load_word",
    "lora",
    "matching",
    "merged",
    "new_word",
    "own",
    "prior_preserving",
    "save_lora",
    "save_word",
    "scaled",
    "share",
    "unmerged",
]
