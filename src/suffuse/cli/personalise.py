"""`suffuse personalise`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from suffuse.cli.say import say

__all__ = ["Personalise"]


@dataclass(frozen=True)
class Personalise:
    """Teach a model one thing, or a style, from a few pictures."""

    run: Positional[Path]
    """a run's folder, or the name of a model that ships; it must be told words"""
    images: Path
    """folder of pictures, and captions in text files beside them: a subject's name the token and what is around it"""
    token: str = "[v]"
    """the new word"""
    noun: Annotated[str, arg(name="class")] = "shape"
    """the word for what it is, which it begins as"""
    method: Literal["dreambooth-lora", "dreambooth", "inversion", "style"] = "dreambooth-lora"
    """what is learned: a LoRA and a word, all weights and a word, a word alone, a LoRA alone"""
    prior: float = 1.0
    """weight of what the model is to go on drawing as it does, its class above all; 0 is without"""
    out: Path = Path("runs/personal")
    """folder for the personal model"""
    rank: int = 8
    """of the LoRA"""
    steps: int | None = None
    """how many; by default the recipe's own"""
    lr: float | None = None
    """peak learning rate"""
    seed: int = 0
    """of order and noise"""
    resume: bool = False
    """go on from what is in `out`"""
    overwrite: bool = False
    """begin anew where `out` already holds something"""

    def __call__(self) -> None:
        """Train, and say what comes next."""
        from suffuse.recipes import personalise

        chosen = {k: v for k, v in vars(self).items() if k not in ("run", "out", "images")}
        made = personalise.train(self.run, self.out, self.images, **chosen)
        kept = "word" if self.method == "inversion" else "lora" if self.method != "dreambooth" else "model/model"
        say(f"trained in {made.train_seconds:.0f} s: {made.path / kept}.safetensors")
        prompt = f"a {self.noun}" if self.method == "style" else f"a {self.token} on a striped pink background"
        say(f'next: suffuse sample {self.out} --prompt "{prompt}"')
