"""A new word: it begins as a known one, is alone in what is trained, and is kept."""

import pytest
import torch

import suffuse as sf
from suffuse import adapters
from suffuse.nets import Label, UNet
from suffuse.training.files import ModelFileError
from tests.adapters.nets import model, said, same, weights, x_of


@pytest.mark.parametrize("kind", ["unet", "dit", "mmdit"])
def test_it_begins_as_another_and_changes_no_text_without_it(kind, tmp_path):
    base = model(kind)
    x, before = x_of(base), weights(base.net)
    new, rows = adapters.new_word(base, "[V]", "square")
    assert torch.equal(said(new.given(text="a red [V]"), x), said(base.given(text="a red square"), x))
    assert torch.equal(said(new, x), said(base, x))
    learned = [p for p in new.net.parameters() if p.requires_grad]
    assert [p.shape for p in learned] == [rows[0].row.shape]
    with torch.no_grad():
        rows[0].row += 1.0
    assert (said(new.given(text="a red [v]"), x) - said(base.given(text="a red square"), x)).abs().max() > 1e-3
    assert torch.equal(said(new, x), said(base, x)) and same(weights(base.net), before)
    adapters.save_word(rows, "[v]", tmp_path / "word.safetensors")
    again = adapters.load_word(base, tmp_path / "word.safetensors")
    assert torch.equal(said(again.given(text="a [v]"), x), said(new.given(text="a [v]"), x))
    sf.save(adapters.fixed(new), tmp_path / "model")
    kept = sf.load(tmp_path / "model")
    assert torch.equal(said(kept.given(text="a [v]"), x), said(new.given(text="a [v]"), x))


def test_training_finds_the_word_that_was_meant():
    """Pictures are what the model itself draws for "blue"; a word that begins as "red" must come to say the same."""
    base = model("dit")
    x = x_of(base, 1).expand(2, -1, -1, -1)
    with torch.no_grad():
        wanted = base.given(text="blue").output(x, 0.5)[0]
    new, rows = adapters.new_word(base, "[v]", "red")

    def loss(_, batch):
        return (new.given(text="[v]").output(x, 0.5)[0] - wanted).square().flatten(1).mean(1)

    with torch.no_grad():
        first = loss(None, None).mean().item()
    sf.fit(loss, {"i": torch.arange(4)}, rows, steps=80, batch_size=2, lr=1e-1, ema=None, progress=False)
    with torch.no_grad():
        assert loss(None, None).mean().item() < 0.1 * first


def test_what_is_no_new_word_is_said(tmp_path):
    base = model("dit")
    with pytest.raises(ValueError, match="'red' is in the vocabulary already"):
        adapters.new_word(base, "red", "blue")
    with pytest.raises(ValueError, match="must be one word"):
        adapters.new_word(base, "two words", "blue")
    with pytest.raises(ValueError, match="unknown words 'dog'"):
        adapters.new_word(base, "[v]", "dog")
    label = sf.Denoiser(UNet(3, 8, (1,), 1, conditions={"label": Label(3)}), sf.schedules.Linear())
    with pytest.raises(TypeError, match="the conditions of this model are label"):
        adapters.new_word(label, "[v]", "a")
    _, rows = adapters.new_word(base, "[v]", "red")
    rows[0].row = torch.nn.Parameter(torch.zeros(3))
    adapters.save_word(rows, "[v]", tmp_path / "word.safetensors")
    with pytest.raises(ModelFileError, match=r"'\[v\]' has rows of \[3\] numbers, here \[16\]"):
        adapters.load_word(base, tmp_path / "word.safetensors")
