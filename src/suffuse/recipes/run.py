"""A run folder: what a recipe trained, and how to take it up again.

`run.json` names the recipe, its settings and the shape of the data; `model/` holds the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suffuse import zoo
from suffuse.denoise import Denoiser
from suffuse.training.checkpoint import load, model_hash
from suffuse.training.files import ModelFileError, read_json, write_json

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A folder that a recipe wrote.

    Attributes:
        path: the folder. recipe: its name. shape: of one data point. settings: what it was trained with.
        train_seconds: what that took.
    """

    path: Path
    recipe: str
    shape: tuple[int, ...]
    settings: dict[str, Any]
    train_seconds: float

    def write(self) -> None:
        """Write run.json."""
        write_json(
            self.path / "run.json",
            {
                "recipe": self.recipe,
                "shape": list(self.shape),
                "settings": self.settings,
                "train_seconds": self.train_seconds,
            },
        )

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run folder, or the one that ships with suffuse under this name when there is no such folder.

        Raises:
            ModelFileError: there is no such folder, or it holds no run.
        """
        path = Path(path)
        if not path.is_dir() and zoo.has(path):
            path = zoo.path(str(path))
        if not path.is_dir():
            raise ModelFileError(f"no run folder at {path}: train one, for example with `suffuse train digits`")
        if not (path / "run.json").exists():
            raise ModelFileError(f"{path} holds no run.json: it is not the folder of a finished training")
        about = read_json(path / "run.json")
        return cls(path, about["recipe"], tuple(about["shape"]), about["settings"], about["train_seconds"])

    def model(self) -> Denoiser:
        """The trained model, in eval mode.

        Raises:
            ModelFileError: it is a control, which has a base; files that are missing or broken.
        """
        if self.recipe == "control":
            name = self.path.name if self.ships else self.path
            how = f"suffuse sample {self.settings.get('base', 'BASE')} --control {name} --hint PICTURE"
            raise ModelFileError(f"{name} holds no model, it is a control: use `{how}`")
        model = load(self.path / "model")
        model.shape = self.shape
        return model

    @property
    def ships(self) -> bool:
        """Whether it is one of those that ship with suffuse, to which nothing is written."""
        return zoo.has(self.path.name) and zoo.path(self.path.name) == self.path.resolve()

    @property
    def model_hash(self) -> str:
        """Identifies the weights."""
        return model_hash(self.path / "model")
