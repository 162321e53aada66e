"""Folders of pictures: nothing broken enters, nothing odd enters unnamed, and what enters is the picture."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from suffuse import data
from suffuse.data.decode import picture
from tests.data.files import encoded, folder_of_everything, gradient, turned


def test_every_kind_of_file_is_taken_in_or_left_out_by_name(tmp_path):
    wanted = folder_of_everything(tmp_path)
    found = data.images(tmp_path, 32)
    kept = [name for name in sorted(wanted) if wanted[name][0] is None]
    assert list(found.names) == kept and len(found) == found.findings.kept == len(kept)
    left = {name: reason for reason, names in found.findings.left_out.items() for name in names}
    assert left == {name: reason for name, (reason, _) in wanted.items() if reason}
    odd = {}
    for reason, names in found.findings.odd.items():
        for name in names:
            odd.setdefault(name, set()).add(reason)
    assert odd == {name: set(notes) for name, (reason, notes) in wanted.items() if notes and not reason}
    said = str(found.findings)
    assert "left out: 3 cut short or damaged (damaged.png, truncated.jpg, truncated.png)" in said
    assert f"{len(kept)} pictures" in said and "CMYK (cmyk.jpg)" in said


def test_an_odd_file_shows_what_its_picture_shows(tmp_path):
    """The turned, CMYK and 16-bit files hold the same gradient; the transparent one is white."""
    folder_of_everything(tmp_path)
    found = data.images(tmp_path, 32)
    x = dict(zip(found.names, found[torch.arange(len(found))]["x"], strict=True))
    for name in ("good.jpg", "turned.jpg"):
        assert (x[name] - x["good.png"]).abs().mean() < 0.02, name
    assert (x["cmyk.jpg"] - x["good.png"]).abs().mean() < 0.03
    ramp = x["deep.png"]
    assert ramp[0, 0, 0] < -0.6 and ramp[0, 0, -1] > 0.6 and bool((ramp[0, 16].diff() > 0).all())
    assert bool((ramp[0] == ramp[1]).all())
    assert bool((x["clear.png"] == 1).all())


def test_pixels_are_in_minus_one_to_one():
    white, _ = picture(encoded(Image.new("RGB", (8, 8), "white")), 8)
    black, _ = picture(encoded(Image.new("RGB", (8, 8))), 8)
    both = data.Pictures(torch.from_numpy(np.stack([white, black])), ("w", "b"))[torch.tensor([0, 1])]["x"]
    assert both[0].unique().tolist() == [1.0] and both[1].unique().tolist() == [-1.0]


def test_shrinking_does_not_alias():
    fine = Image.fromarray((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8))
    small, _ = picture(encoded(fine), 32, channels=1)
    assert small.min() >= 126 and small.max() <= 129


@pytest.mark.parametrize("crop", ["centre", "squeeze", "pad"])
def test_a_crop_keeps_what_it_says(crop):
    """A picture three times as wide as high, in thirds of red, green and blue."""
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("lime", (32, 0, 64, 32))
    wide.paste("blue", (64, 0, 96, 32))
    x, _ = picture(encoded(wide), 24, crop=crop)
    at = {"left": x[:, 12, 2], "middle": x[:, 12, 12], "right": x[:, 12, 21], "top": x[:, 1, 12]}
    colours = {where: tuple((value > 127).tolist()) for where, value in at.items()}
    red, green, blue, white = (True, False, False), (False, True, False), (False, False, True), (True, True, True)
    if crop == "centre":
        assert set(colours.values()) == {green}
    else:
        assert (colours["left"], colours["middle"], colours["right"]) == (red, green, blue)
        assert colours["top"] == (green if crop == "squeeze" else white)


def test_folders_are_classes(tmp_path):
    for name in ("dog/a.png", "cat/black/b.png", "cat/white/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(gradient()))
    found = data.images(tmp_path, 16)
    assert found.classes == ("cat/black", "cat/white", "dog")
    labels = found[torch.arange(3)]["label"].tolist()
    assert [found.classes[k] for k in labels] == [os.path.dirname(name) for name in found.names]
    assert "label" not in data.images(tmp_path, 16, labels=False)[torch.tensor([0])]
    (tmp_path / "alone.png").write_bytes(encoded(gradient()))
    assert data.images(tmp_path, 16).label is None
    with pytest.raises(ValueError, match=r"1 pictures of .* lie in no class folder"):
        data.images(tmp_path, 16, labels=True)


def test_captions_lie_beside_or_in_the_list(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(encoded(gradient()))
    (tmp_path / "0.txt").write_text(" a red\n cat ", encoding="utf-8")
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe\x00bad")
    (tmp_path / "notes.txt").write_text("of no picture")
    lines = [{"file_name": "2.png", "text": "a dog"}, {"file_name": "gone.png", "text": "nobody"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = data.images(tmp_path, 16)
    assert found.captions == ("a red cat", "", "a dog", "")
    assert found.findings.odd == {"with a caption that is not UTF-8": ["1.png"], "without a caption": ["3.png"]}
    assert found.findings.left_out == {
        "of no picture's name": ["notes.txt"],
        "of metadata.jsonl that are not there": ["gone.png"],
    }
    told = found.given(text=torch.arange(8).reshape(4, 2))
    assert told[torch.tensor([2, 0])]["text"].tolist() == [[4, 5], [0, 1]]
    with pytest.raises(ValueError, match="one row a picture, 4, got 3"):
        found.given(text=torch.zeros(3))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "2.png"}')
    with pytest.raises(ValueError, match="line 1 must be like"):
        data.images(tmp_path, 16)


def test_a_caption_stays_with_its_picture_when_others_are_left_out(tmp_path):
    for k in range(6):
        broken = k in (0, 3)
        (tmp_path / f"{k}.png").write_bytes(b"" if broken else encoded(Image.new("RGB", (16, 16), (40 * k, 0, 0))))
        (tmp_path / f"{k}.txt").write_text(f"number {k}")
    found = data.images(tmp_path, 16)
    for caption, x in zip(found.captions, found.pixels, strict=True):
        assert int(caption.split()[1]) * 40 == x[0, 0, 0]


def test_a_cache_is_the_set_and_is_made_again_when_a_file_changes(tmp_path, monkeypatch):
    root, cache = tmp_path / "set", tmp_path / "cache"
    folder_of_everything(root)
    plain, made = data.images(root, 32), data.images(root, 32, cache=cache)
    opened = []
    monkeypatch.setattr("suffuse.data.pictures.picture", lambda *a, **k: opened.append(1) or picture(*a, **k))
    again = data.images(root, 32, cache=cache)
    assert not opened
    rows = torch.arange(len(plain))
    for other in (made, again):
        assert torch.equal(other[rows]["x"], plain[rows]["x"]) and other.names == plain.names
        assert other.findings == plain.findings
    (root / "good.png").write_bytes(encoded(Image.new("RGB", (32, 32), "red")))
    changed = data.images(root, 32, cache=cache)
    assert opened and changed.pixels[list(changed.names).index("good.png"), 0].unique().tolist() == [255]
    assert data.images(root, 16, cache=cache).pixels.shape[-1] == 16
    with pytest.raises(ValueError, match="is no cache of pictures"):
        data.images(root, 32, cache=root)


def test_the_order_does_not_depend_on_the_threads(tmp_path):
    folder_of_everything(tmp_path)
    one, many = data.images(tmp_path, 32, workers=1), data.images(tmp_path, 32, workers=8)
    assert torch.equal(one.pixels, many.pixels) and one.names == many.names and one.findings == many.findings


def test_a_set_without_pictures_says_what_was_found(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no picture that can be used among 1 files\n.*\n.*1 empty \(a.png\)"):
        data.images(tmp_path, 16)
    with pytest.raises(ValueError, match="is not a folder of pictures"):
        data.images(tmp_path / "none", 16)
    with pytest.raises(ValueError, match="'centre', 'squeeze' or 'pad', got 16, 3 and 'middle'"):
        (tmp_path / "b.png").write_bytes(encoded(gradient()))
        data.images(tmp_path, 16, crop="middle")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    assert data.images(tmp_path, 16).findings.left_out["unreadable"] == ["link.png"]


def test_a_picture_that_is_turned_is_turned_back():
    x, _ = picture(turned(), 32, crop="squeeze")
    assert x[0, 16, 30] > x[0, 16, 1] + 150 and x[1, 30, 16] > x[1, 1, 16] + 150


def test_files_cut_short_are_refused_a_loophole(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="set it to False"):
        picture(encoded(gradient()), 16)
