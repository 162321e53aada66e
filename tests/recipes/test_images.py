"""A model of a user's own pictures: what is read, what is told, and the commands on it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from suffuse import cli, nets
from suffuse.data import Pictures
from suffuse.recipes import images, images_measured
from suffuse.recipes.run import Run
from tests.data.files import encoded


def call(*args):
    cli.main([str(a) for a in args])


def blots(folder, n, *, colour=(250, 40, 40), size=20, first=0, kind="RGB"):
    """Squares of a colour at places that differ, on shades that differ where the places come again."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        x = np.full((size, size, 3), 240 - 5 * (i // 12), np.uint8)
        x[i % 12 : i % 12 + 8, (5 * i) % 12 : (5 * i) % 12 + 8] = colour
        (folder / f"{i:03}.png").write_bytes(encoded(Image.fromarray(x).convert(kind)))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two class folders of 50 pictures, and a broken one."""
    root = tmp_path_factory.mktemp("pictures")
    blots(root / "blue", 50, colour=(40, 40, 250))
    blots(root / "red", 50)
    (root / "red" / "broken.png").write_bytes((root / "red" / "000.png").read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def run(classes, tmp_path_factory):
    """Trained by the command for a moment."""
    out = tmp_path_factory.mktemp("runs") / "images"
    args = ["--data", classes, "--size", 16, "--steps", 12, "--batch-size", 8, "--width", 8, "--flip", "--out", out]
    call("train", "images", *args)
    return out


def test_a_folder_of_classes_trains_and_its_broken_file_is_named(run, classes):
    made = Run.open(run)
    assert made.model().conditions == {"label": nets.Label(2)} and made.shape == (3, 16, 16)
    about = json.loads((run / "data.json").read_text())
    assert about["classes"] == ["blue", "red"] and about["findings"]["kept"] == 100
    assert list(about["findings"]["left_out"].values()) == [["red/broken.png"]]
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["loss"] < losses[0]["loss"] and losses[-1]["val_loss"] < losses[0]["val_loss"]


def test_it_is_sampled_and_evaluated_by_the_same_commands(run, tmp_path, capsys):
    call("sample", run, "--label", 1, "--n", 4, "--steps", 2, "--out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == ((2 * 17 + 1) * 6,) * 2
    call("evaluate", run)
    measured = json.loads((run / "metrics.json").read_text())["measured"]
    assert measured["sliced_w"]["n"] == 10
    assert measured["sliced_w"]["value"] > 2 * measured["floor_w"]["value"], "twelve steps are not real pictures"
    page = (run / "report.html").read_text()
    assert page.count("data:image/") == 5 and "red/broken.png" in page
    assert "coverage" in capsys.readouterr().out


class Detector(torch.nn.Module):
    """With the interface of NVIDIA's Inception in TorchScript: the mean of each colour."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        """Features (B, 3)."""
        return img.float().mean((2, 3)) / 255


def test_a_users_network_measures_as_well(run, tmp_path, capsys):
    torch.jit.save(torch.jit.script(Detector()), tmp_path / "means.pt")
    call("evaluate", run, "--features", tmp_path / "means.pt")
    measured = json.loads((run / "metrics.json").read_text())["measured"]
    for name in ("kid", "frechet"):
        assert measured[name]["features"] == "means" and measured[name]["n"] == 10
        assert measured[name]["value"] > 3 * abs(measured[f"floor_{name}"]["value"]), "twelve steps are not real"
    assert "floor_frechet" in capsys.readouterr().out


def test_what_is_kept_out_is_never_trained_on(classes, tmp_path, monkeypatch):
    found = images.open_set(classes, 16)
    mine, kept_out = images.split(found)
    assert sorted([*mine.tolist(), *kept_out.tolist()]) == list(range(100)) and len(kept_out) == 10
    seen = []
    real = images.fit

    def watched(loss, data, model, **how):
        seen.extend(data.take(90)["x"])
        return real(loss, data, model, **how)

    monkeypatch.setattr(images, "fit", watched)
    images.train(tmp_path / "r", data=classes, size=16, steps=1, batch_size=2, width=8, progress=False)
    assert len({x.numpy().tobytes() for x in found[torch.arange(100)]["x"]}) == 100
    keys = {x.numpy().tobytes() for x in seen}
    wanted = {x.numpy().tobytes() for x in found[mine]["x"]}
    assert keys == wanted


def test_what_is_kept_out_is_of_every_class_where_classes_take_turns():
    label = torch.arange(600) % 10
    found = Pictures(torch.zeros(600, 1, 1, 1, dtype=torch.uint8), ("",) * 600, label, tuple("0123456789"))
    kept_out = images.split(found)[1]
    assert len(kept_out) == 60 and label[kept_out].bincount(minlength=10).min() >= 2
    assert torch.equal(images.split(found)[1], kept_out), "the same each time"


def test_captions_are_told_by_the_words_they_have(tmp_path):
    blots(tmp_path / "p", 6)
    for i in range(5):
        (tmp_path / "p" / f"{i:03}.txt").write_text(f"A red square, number {'one' if i % 2 else 'two'}.")
    found, conditions = images.told(images.open_set(tmp_path / "p", 16))
    assert conditions["text"].vocabulary == ("a", "number", "one", "red", "square", "two")
    text = found[torch.arange(6)]["text"]
    assert torch.equal(text[:5], conditions["text"].ids(found.captions[:5])) and (text[5] == -1).all()
    out = tmp_path / "run"
    images.train(out, data=tmp_path / "p", size=16, steps=2, batch_size=4, width=8, progress=False)
    call("sample", out, "--prompt", "red two", "--n", 2, "--steps", 1, "--out", tmp_path / "x.png")
    images_measured.pictures_of(Run.open(out), images_measured.evaluate(Run.open(out)))
    assert "a red square, number two" in (out / "report.html").read_text().lower()


def test_few_captions_give_way_to_classes(tmp_path):
    blots(tmp_path / "p" / "a", 3)
    blots(tmp_path / "p" / "b", 3)
    (tmp_path / "p" / "a" / "000.txt").write_text("alone")
    assert list(images.told(images.open_set(tmp_path / "p", 16))[1]) == ["label"]


def test_arrays_are_scaled_whole_and_grey_stays_grey(tmp_path):
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    x = np.broadcast_to(ramp[None, None, :, None], (4, 20, 40, 3))
    np.savez(tmp_path / "x.npz", x=x, label=[0, 1, 2, 1], names=["a", "b", "c", "d"])
    found = images.open_set(tmp_path / "x.npz", 8)
    assert found.pixels.shape == (4, 1, 8, 8) and found.classes == ("0", "1", "2")
    middle = torch.from_numpy(ramp[10:30].astype(np.float32)).mean()
    assert abs(found.pixels.float().mean() - middle) < 2, "the middle square, not the left end"
    assert (found.pixels[:, :, :, 1:].int() - found.pixels[:, :, :, :-1].int() > 0).all()


MISUSE = {
    "nothing there": (["--data", "nowhere"], "nowhere is neither a folder, nor a .npz file, nor one of mnist"),
    "odd size": (["--data", "mnist", "--size", "30"], "size must be a multiple of 4 and at least 8, got 30"),
    "no x": (["--data", "y.npz"], 'one array must be "x"'),
    "not pictures": (["--data", "flat.npz"], "must be (N, H, W, 1 or 3) of uint8, got (4, 3)"),
    "range": (["--data", "loud.npz"], "must be uint8, or float in [-1, 1], got values up to 255"),
    "empty": (["--data", "."], "there is no picture that can be used"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_what_is_misused_is_said_before_training(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("y.npz", y=np.zeros(3))
    np.savez("flat.npz", x=np.zeros((4, 3), np.float32))
    np.savez("loud.npz", x=np.full((4, 3, 8, 8), 255, np.float32))
    args, message = MISUSE[name]
    with pytest.raises(SystemExit) as stop:
        call("train", "images", *args)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_changed_folder_is_not_measured_as_if_it_were_the_same(tmp_path, capsys):
    blots(tmp_path / "p" / "a", 12)
    blots(tmp_path / "p" / "b", 12)
    out = tmp_path / "run"
    images.train(out, data=tmp_path / "p", size=16, steps=1, batch_size=2, width=8, progress=False)
    blots(tmp_path / "p" / "c", 2)
    with pytest.raises(SystemExit):
        call("evaluate", out)
    assert "is no longer the set that" in capsys.readouterr().err


@pytest.mark.parametrize("size", [8, 28, 36, 64, 100])
def test_every_allowed_size_has_a_network(size):
    model = images.build((1, size, size), 8, 0.0, {})
    assert model.net(torch.zeros(1, 1, size, size), torch.zeros(1)).shape == (1, 1, size, size)
