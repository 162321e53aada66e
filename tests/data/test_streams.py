"""Shards and streamed sets: the samples that were written, in exact order after a stop, without the broken ones."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from suffuse import data
from tests.data.files import encoded


def block(k):
    """A picture that says its number in red."""
    return encoded(Image.new("RGB", (16, 16), (10 * k, 0, 0)))


def number(x):
    return ((x[..., 0, 8, 8] + 1) * 12.75).round().long().tolist()


def write(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, raw in samples:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


@pytest.fixture
def shards(tmp_path):
    """24 samples in three shards of 8; 5 is broken, 9 has no class, 14 no caption, 20 no picture."""
    for s in range(3):
        samples = []
        for k in range(8 * s, 8 * s + 8):
            name = f"deep.er/{k:03d}"
            if k != 20:
                samples.append((f"{name}.png", b"no picture" if k == 5 else block(k)))
            if k % 2:
                samples.append((f"{name}.json", json.dumps({"label": k % 3, "text": f"number {k}"}).encode()))
            else:
                samples.append((f"{name}.cls", str(k % 3).encode()))
                samples.append((f"{name}.txt", b"" if k == 14 else f" number\n {k}".encode()))
            if k == 9:
                samples[-1] = (f"{name}.json", b'{"text": "number 9"}')
        write(tmp_path / f"s-{s}.tar", samples)
    return tmp_path


def say(caption):
    return torch.tensor(int(caption.removeprefix("number ")))


def test_a_sample_keeps_its_picture_class_and_caption(shards):
    stream = data.webdataset(f"{shards}/s-{{0..2}}.tar", 16, labels=True, text=say)
    batch = data.draws(stream, seed=0, block=5).take(20)
    drawn = number(batch["x"])
    assert sorted(drawn) == [k for k in range(24) if k not in (5, 9, 14, 20)]
    assert batch["text"].tolist() == drawn and batch["label"].tolist() == [k % 3 for k in drawn]
    wanted = {
        "s-0.tar/deep.er/005": "not a picture",
        "s-1.tar/deep.er/009": "without a class",
        "s-1.tar/deep.er/014": "without a caption",
        "s-2.tar/deep.er/020": "empty",
    }
    data.draws(stream, seed=0, block=24).take(25)  # a whole epoch, and a bit
    assert {name: reason for reason, names in stream.findings.left_out.items() for name in names} == wanted
    assert all(len(names) == 1 for names in stream.findings.left_out.values()), "named once, not once an epoch"


def test_what_is_not_asked_for_leaves_nothing_out(shards):
    stream = data.webdataset(sorted(shards.glob("*.tar")), 16)
    batch = data.draws(stream, seed=0).take(22)
    assert sorted(number(batch["x"])) == [k for k in range(24) if k not in (5, 20)] and set(batch) == {"x"}


@pytest.mark.parametrize("before", [1, 6, 20, 21, 33])
def test_a_stopped_read_of_shards_goes_on_exactly(shards, before):
    def feed():
        return data.draws(data.webdataset(sorted(shards.glob("*.tar")), 16, labels=True, text=say), seed=4, block=7)

    first = feed()
    first.take(before)
    kept = json.loads(json.dumps(first.position))
    again = feed()
    again.seek(kept)
    assert again.take(30)["text"].tolist() == first.take(30)["text"].tolist()


def test_shards_cut_short_or_no_shards_are_named_and_passed_over(shards):
    whole = (shards / "s-1.tar").read_bytes()
    (shards / "s-1.tar").write_bytes(whole[: len(whole) // 2 + 100])
    (shards / "s-2.tar").write_bytes(b"this is no tar file" * 100)
    stream = data.webdataset(sorted(shards.glob("*.tar")), 16)
    drawn = set(number(data.draws(stream, seed=0).take(60)["x"]))
    assert {0, 1, 2, 3, 4, 6, 7, 8} <= drawn and not drawn & {5, 15, *range(16, 24)}
    assert sorted(stream.findings.left_out["shard cut short or damaged"]) == [
        str(shards / "s-1.tar"),
        str(shards / "s-2.tar"),
    ]


def test_it_reads_what_the_webdataset_library_writes_and_opens(tmp_path):
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "w.tar")) as out:
        for k in range(6):
            out.write({"__key__": f"{k:04d}", "png": block(k), "cls": k, "txt": f"number {k}"})
    for url in (str(tmp_path / "w.tar"), f"pipe:cat {tmp_path}/w.tar"):
        batch = data.draws(data.webdataset(url, 16, labels=True, text=say), seed=0).take(6)
        assert batch["label"].tolist() == batch["text"].tolist() == number(batch["x"])


def test_a_caption_that_the_model_cannot_be_told_is_left_out(shards):
    def even(caption):
        if int(caption.split()[1]) % 2:
            raise ValueError("odd")
        return say(caption)

    stream = data.webdataset(sorted(shards.glob("*.tar")), 16, text=even)
    assert not any(k % 2 for k in number(data.draws(stream, seed=0).take(20)["x"]))
    assert len(stream.findings.left_out["with a caption that cannot be used"]) == 12


def test_missing_shards_are_said(tmp_path):
    with pytest.raises(ValueError, match=r"the shard .*none\.tar is missing"):
        data.webdataset(tmp_path / "none.tar", 16)


@pytest.mark.parametrize("where", ["between files", "in a header", "in a body", "before a picture"])
def test_the_sample_that_was_cut_is_not_drawn(shards, where):
    path = shards / "s-0.tar"
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset, member.offset_data) for member in tar}
    header, body = places["deep.er/003.json"]
    at = {
        "between files": header,
        "in a header": header + 100,
        "in a body": body + 1,
        "before a picture": places["deep.er/004.png"][0],
    }[where]
    path.write_bytes(path.read_bytes()[:at])
    stream = data.webdataset(path, 16)
    assert set(number(data.draws(stream, seed=0).take(9)["x"])) == {0, 1, 2}
    assert stream.findings.left_out["shard cut short or damaged"] == [str(path)]


@pytest.fixture
def rows():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]), text=datasets.Value("string")
    )
    images = [{"bytes": b"broken" if k == 3 else block(k), "path": f"{k}.png"} for k in range(20)]
    return datasets.Dataset.from_dict(
        {"image": images, "label": [k % 2 for k in range(20)], "text": [f"number {k}" for k in range(20)]},
        features=features,
    )


def test_a_hugging_face_set_is_a_set_of_pictures(rows, tmp_path):
    found = data.hugging_face(rows, 16, label="label", caption="text", cache=tmp_path / "cache")
    assert len(found) == 19 and found.findings.left_out == {"not a picture": ["row 3"]} and found.classes == ("a", "b")
    x = found.tensors()
    assert number(x["x"]) == [say(c).item() for c in found.captions] and x["label"].tolist() == [
        k % 2 for k in number(x["x"])
    ]
    again = data.hugging_face(rows, 16, label="label", caption="text", cache=tmp_path / "cache")
    assert torch.equal(again.pixels, found.pixels)
    with pytest.raises(ValueError, match="no column 'name', but image, label, text"):
        data.hugging_face(rows, 16, label="name")
    with pytest.raises(TypeError, match="got dict"):
        data.hugging_face({"train": rows}, 16)


@pytest.mark.parametrize("before", [1, 7, 19, 20, 45])
def test_a_streamed_hugging_face_set_goes_on_exactly(rows, before):
    def feed():
        stream = data.hugging_face(rows.to_iterable_dataset(num_shards=4), 16, label="label", caption="text", text=say)
        return data.draws(stream, seed=1, block=6), stream

    first, stream = feed()
    batch = first.take(before)
    assert batch["text"].tolist() == number(batch["x"]) and batch["label"].tolist() == [
        k % 2 for k in number(batch["x"])
    ]
    kept = json.loads(json.dumps(first.position))
    again, _ = feed()
    again.seek(kept)
    assert again.take(25)["text"].tolist() == first.take(25)["text"].tolist()
    assert stream.findings.left_out == {"not a picture": ["3.png"]}


def test_an_epoch_of_a_streamed_set_has_every_whole_record_once(rows):
    feed = data.draws(data.hugging_face(rows.to_iterable_dataset(num_shards=4), 16), seed=0, block=6)
    one, two = number(feed.take(19)["x"]), number(feed.take(19)["x"])
    assert sorted(one) == sorted(two) == [k for k in range(20) if k != 3] and one != two


def test_importing_data_imports_none_of_the_optional_libraries():
    code = (
        "import sys, suffuse.data, suffuse.metrics; "
        "heavy = 'PIL', 'datasets', 'webdataset', 'sklearn', 'scipy', 'skimage', 'torchmetrics', 'torchvision'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_damage_anywhere_is_no_crash():
    """Bytes changed and files cut at random, in every format: a picture, or None and a reason."""
    from suffuse.data.decode import picture

    draw = np.random.default_rng(0)
    whole = Image.fromarray(draw.integers(0, 255, (24, 24, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"):
        good = encoded(whole, kind)
        for _ in range(60):
            raw = bytearray(good)
            for k in draw.integers(0, min(len(raw), 200), draw.integers(1, 6)):
                raw[k] = draw.integers(0, 256)
            x, reasons = picture(bytes(raw[: draw.integers(1, len(raw) + 1)]), 16)
            assert (x is None and len(reasons) == 1) or x.shape == (3, 16, 16)
