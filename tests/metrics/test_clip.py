"""Captions and pictures in one space: someone's CLIP is asked as it asks to be, and the small towers know the world."""

import json
import math
import string

import pytest
import torch
import torch.nn.functional as F

from suffuse import metrics, noise, zoo
from suffuse.data.shapes import CHANGES, Scenes, changed
from suffuse.metrics.clip_nets import TwoTowers, contrast

SEED = 424_242_421
CAPTIONS = ["a cat", "cat on a mat at 9", "b"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tiny random CLIPModel and its processor, and the folder that both were saved to."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    folder.mkdir()
    letters = string.ascii_lowercase + string.digits
    words = [*letters, *(c + "</w>" for c in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = transformers.CLIPConfig(
        text_config=small | ends | {"vocab_size": len(words), "max_position_embeddings": 20},
        vision_config=small | {"image_size": 24, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(3)
    model = transformers.CLIPModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():  # so that what is told matters
        if name.endswith("weight") and parameter.ndim > 1:
            parameter.mul_(4.0)
    processor = transformers.CLIPProcessor(pictures, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


def smooth(n, h, w):
    """Pictures as a file holds them, uint8, some parts saturated."""
    x = F.interpolate(noise((n, 3, 5, 5), 0), size=(h, w), mode="bicubic").clamp(-1, 1)
    return ((x + 1) * 127.5).round().byte()


@pytest.mark.parametrize("size", [(24, 24), (64, 64), (31, 57), (60, 16)], ids=str)
def test_a_clip_sees_what_its_own_processor_shows_it(theirs, size, monkeypatch):
    model, processor, _ = theirs
    pictures = smooth(4, *size)
    wanted = processor.image_processor(
        list(pictures.permute(0, 2, 3, 1).numpy()), return_tensors="pt", input_data_format="channels_last"
    )["pixel_values"]
    shown, features = [], model.get_image_features

    def watched(pixel_values):
        shown.append(pixel_values)
        return features(pixel_values=pixel_values)

    monkeypatch.setattr(model, "get_image_features", watched)
    vectors = metrics.clip(model, processor).image(pictures.float() / 127.5 - 1)
    level = 1 / (255 * torch.tensor(processor.image_processor.image_std).view(3, 1, 1))
    off = (shown[0] - wanted).abs() / level
    assert off.max() < 3.5 and (off > 1.1).float().mean() < 0.01, "theirs rounds to bytes and clips along each axis"
    assert (wanted[0] - wanted[1]).abs().max() > 100 * level.max(), "pictures differ"
    alone = F.normalize(features(pixel_values=shown[0]).pooler_output, dim=-1)
    torch.testing.assert_close(vectors, alone, rtol=0, atol=1e-6)


def test_a_clip_reads_what_its_own_tokenizer_says(theirs):
    model, processor, _ = theirs
    towers = metrics.clip(model, processor)
    got = towers.text(CAPTIONS)
    for caption, vector in zip(CAPTIONS, got, strict=True):
        told = processor.tokenizer([caption], return_tensors="pt")
        wanted = F.normalize(model.get_text_features(**told).pooler_output, dim=-1)[0]
        torch.testing.assert_close(vector, wanted, rtol=0, atol=1e-5)
    assert (got[0] - got[1]).abs().max() > 0.1, "captions differ"


def test_gradients_pass_through_resizing_and_normalising(theirs):
    model, processor, _ = theirs
    towers = metrics.clip(model, processor)
    text = towers.text(["a cat"])
    images = (0.5 * F.interpolate(noise((2, 3, 6, 6), 1), size=40, mode="bicubic")).clamp(-0.9, 0.9)

    def score(x):
        return (towers.image(x) @ text.T).sum()

    x = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(x), x)
    way = slope / slope.norm()
    step = 0.05
    rise = (score(images + step * way) - score(images - step * way)) / (2 * step)
    assert rise.item() == pytest.approx(slope.norm().item(), rel=0.05) and rise > 0


def test_a_folder_is_the_model_and_processor_it_was_saved_from(theirs, tmp_path):
    model, processor, folder = theirs
    one, two = metrics.clip(model, processor), metrics.clip(folder)
    images = smooth(2, 40, 40).float() / 127.5 - 1
    assert two.name == "tiny-clip" and not two.net.training
    torch.testing.assert_close(two.image(images), one.image(images))
    torch.testing.assert_close(two.text(CAPTIONS), one.text(CAPTIONS))
    # the older layout: preprocessor_config.json, with other numbers so that it is seen to be read
    for file in folder.iterdir():
        if file.name != "processor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    small = images[..., :24, :24]
    wanted = F.normalize(model.get_image_features(pixel_values=small).pooler_output, dim=-1)
    torch.testing.assert_close(metrics.clip(tmp_path).image(small), wanted, rtol=0, atol=1e-5)


def test_what_no_clip_can_be_read_from_is_named(theirs, tmp_path):
    model, processor, folder = theirs
    with pytest.raises(ValueError, match="there is no folder 'openai/clip-vit-base-patch32' here"):
        metrics.clip("openai/clip-vit-base-patch32")
    with pytest.raises(ValueError, match=r"needs its processor, .* got None"):
        metrics.clip(model)
    with pytest.raises(ValueError, match="a name or folder brings its own"):
        metrics.clip("shapes", processor)
    with pytest.raises(ValueError, match="or a CLIPModel, got Linear"):
        metrics.clip(torch.nn.Linear(1, 1))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors: .* never as a pickle"):
        metrics.clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"neither preprocessor_config\.json nor processor_config\.json"):
        metrics.clip(tmp_path)
    processor = type("P", (), {"tokenizer": processor.tokenizer, "image_processor": {"image_mean": [0.5] * 3}})
    with pytest.raises(ValueError, match="does not say its image_std"):
        metrics.clip(model, processor)
    processor.image_processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": 224}}
    with pytest.raises(ValueError, match="crops to 224 pixels, the model sees 24"):
        metrics.clip(model, processor)


def test_what_towers_cannot_take_is_named(theirs):
    model, processor, _ = theirs
    towers, shapes = metrics.clip(model, processor), metrics.Towers.of_shapes(TwoTowers().state_dict())
    with pytest.raises(ValueError, match="20 tokens, number 1 has 26: 'a a a"):
        towers.text(["a cat", "a " * 24])
    with pytest.raises(ValueError, match="must be a list of texts, got 'a cat'"):
        towers.text("a cat")
    with pytest.raises(ValueError, match="unknown words 'dog'"):
        shapes.text(["a dog"])
    with pytest.raises(TypeError, match=r"images is torch\.uint8: scale it"):
        towers.image(smooth(4, 24, 24))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(4, 1, 32, 32\)"):
        shapes.image(torch.zeros(4, 1, 32, 32))
    with pytest.raises(ValueError, match=r"S a multiple of 32, got \(4, 3, 48, 48\)"):
        shapes.image(torch.zeros(4, 3, 48, 48))
    with pytest.raises(RuntimeError, match="in training mode"):
        model.train()
        try:
            towers.text(["a cat"])
        finally:
            model.eval()
    with pytest.raises(ValueError, match="2 images need 2 captions, got 1"):
        metrics.clip_score(torch.zeros(2, 3, 32, 32), ["a star"], shapes)
    with pytest.raises(ValueError, match="images must be finite, 1 of 1 is not"):
        metrics.clip_score(torch.full((1, 3, 32, 32), torch.nan), ["a star"], shapes)
    with pytest.raises(ValueError, match="2 images need 2 captions, got 3"):
        metrics.clip_choice(torch.zeros(2, 3, 32, 32), ["a star", "a ring"], ["a star"] * 3, shapes)
    with pytest.raises(ValueError, match=r"among must be in 2\.\.2, .* got 64"):
        metrics.clip_retrieval(torch.zeros(2, 3, 32, 32), ["a star", "a ring"], shapes)


def plane(read):
    """Towers into the plane: an image is the angle that its first pixel holds, in half turns; a caption is `read`."""

    def turned(angle):
        return 3 * torch.stack([angle.cos(), angle.sin()], -1)  # lengths must not matter

    net = torch.nn.Identity().eval()
    return metrics.Towers(
        "plane", net, lambda x: turned(torch.pi * x[:, 0, 0, 0]), lambda texts: turned(torch.tensor(read(texts)))
    )


def test_the_score_of_angles_all_around_is_known():
    """E 100 max(cos, 0) = 100/pi over the circle, and its variance 100^2 (1/4 - 1/pi^2)."""
    n = 4000
    images = (2 * torch.rand(n) - 1).view(n, 1, 1, 1).expand(n, 3, 1, 1)
    towers = plane(lambda texts: [0.0 for _ in texts])
    score = metrics.clip_score(images, ["x"] * n, towers)
    spread = 100 * math.sqrt((1 / 4 - 1 / math.pi**2) / n)
    assert score.n == n and "100 max(cos, 0)" in score.convention and "plane" in score.features
    assert (score.high - score.low) / 2 == pytest.approx(1.96 * spread, rel=0.03)
    assert abs(score.value - 100 / math.pi) < 3 * spread
    assert metrics.clip_score(images[:2] * 0, ["x"] * 2, towers).value == pytest.approx(100)


def test_retrieval_finds_the_own_and_is_a_draw_where_nothing_is_known():
    n = 300
    angle = torch.linspace(-0.9, 0.9, n)
    images = angle.view(n, 1, 1, 1).expand(n, 3, 1, 1)
    names = [f"{k}" for k in range(n)]
    knowing = plane(lambda texts: [math.pi * angle[int(t)].item() for t in texts])
    assert metrics.clip_retrieval(images, names, knowing).value == 1
    mixed = torch.randperm(n).tolist()
    deaf = plane(lambda texts: [math.pi * angle[mixed[int(t)]].item() for t in texts])
    found = metrics.clip_retrieval(images, names, deaf, among=4)
    assert found.low < 1 / 4 < found.high
    alike = plane(lambda texts: [0.0 for _ in texts])
    assert metrics.clip_retrieval(images, names, alike).value == 0, "a tie is lost"
    assert metrics.clip_retrieval(images, ["same"] * n, alike).value == 1, "the same words are no rival"


def test_of_two_captions_the_nearer_is_chosen():
    angle = torch.tensor([-0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4])
    images = angle.view(7, 1, 1, 1).expand(7, 3, 1, 1)
    towers = plane(lambda texts: [float(t) for t in texts])
    up, down = ["1.0"] * 7, ["-1.0"] * 7
    assert metrics.clip_choice(images, up, down, towers).value == pytest.approx(4 / 7), "one in the middle is a tie"
    assert metrics.clip_choice(images, down, up, towers).value == pytest.approx(2 / 7)


def test_the_loss_of_towers_that_cannot_tell_is_the_logarithm_of_the_choices():
    b, m, warmth = 6, 4, torch.tensor(2.0)
    same = F.normalize(torch.ones(b, 3), dim=-1)
    usable = torch.tensor([True, True, False, True])
    loss = contrast(same, same, warmth, same[:m], usable)
    torch.testing.assert_close(loss, torch.full((b,), (math.log(b + 3) + math.log(b)) / 2))
    # and of those that tell everything, with nothing to refuse, log(1 + (B - 1) e^(-scale)) both ways
    apart = torch.eye(b)
    none = torch.zeros(m, dtype=torch.bool)
    known = torch.full((b,), math.log(1 + (b - 1) * math.exp(-math.exp(2.0))))
    torch.testing.assert_close(contrast(apart, apart, warmth, apart[:m], none), known)
    # one text for all: a picture cannot choose, the text always takes the first
    first = apart[:1].expand(b, -1)
    lost = math.log(math.exp(math.exp(2.0)) + b - 1)
    told = torch.tensor([lost - math.exp(2.0)] + [lost] * (b - 1))
    torch.testing.assert_close(contrast(apart, first, warmth, apart[:m], none), (math.log(b) + told) / 2)
    hot = contrast(apart, apart.roll(1, 0), torch.tensor(20.0), apart[:m], none)
    torch.testing.assert_close(hot, torch.full((b,), 100.0)), "the scale stops at 100"


@pytest.fixture(scope="module")
def shipped():
    if not zoo.has("clip_shapes"):
        pytest.skip("the towers of the shapes world are not trained to their bar yet")
    return metrics.clip("shapes")


@pytest.mark.parametrize("held_out", [False, True])
def test_the_shipped_towers_find_the_caption_of_a_fresh_scene(shipped, held_out):
    batch = Scenes(SEED, held_out=held_out)(0, 500)
    found = metrics.clip_retrieval(batch.images, batch.captions, shipped)
    assert found.high >= 0.9 and found.value > 0.87, found


@pytest.mark.parametrize("change", CHANGES)
def test_the_shipped_towers_tell_what_is_bound_to_what(shipped, change):
    pairs = Scenes(SEED, counts=(0.0, 1.0), identical=0.0, full=True)(0, 500)
    said, wrong = changed(pairs, change)
    rows = wrong.nonzero()[:, 0].tolist()
    chosen = metrics.clip_choice(
        pairs.images[rows], [pairs.captions[i] for i in rows], [said[i] for i in rows], shipped
    )
    assert chosen.high >= 0.9 and chosen.value > 0.87, chosen


def test_a_vector_does_not_depend_on_its_batch_mates():
    towers, batch = metrics.Towers.of_shapes(TwoTowers().state_dict()), Scenes(SEED)(0, 12)
    image, text = towers.image(batch.images), towers.text(batch.captions)
    torch.testing.assert_close(towers.image(batch.images[5:6])[0], image[5], rtol=0, atol=1e-5)
    torch.testing.assert_close(towers.text(batch.captions[5:6])[0], text[5], rtol=0, atol=1e-5)
    twice = F.interpolate(batch.images, scale_factor=2)
    torch.testing.assert_close(towers.image(twice), image, rtol=0, atol=1e-5)
    for vectors in (image, text):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(12))


def test_climbing_the_score_makes_a_picture_fit_its_caption(shipped):
    batch = Scenes(SEED)(0, 8)
    text = shipped.text(batch.captions)
    x = batch.images.roll(1, 0).clone().requires_grad_()
    before = (shipped.image(x) * text).sum(1).detach()
    for _ in range(10):
        score = (shipped.image(x) * text).sum(1)
        (slope,) = torch.autograd.grad(score.sum(), x)
        x.data += 2 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    after = (shipped.image(x) * text).sum(1).detach()
    assert (after > before + 0.2).all()
