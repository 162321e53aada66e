"""LoRA and DoRA in files: there and back, and refused where they were made for another model."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from suffuse import adapters
from suffuse.training.files import ModelFileError
from tests.adapters.nets import OURS, adapted, model, said, shaken, x_of


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", [*OURS, "chain"])
def test_what_is_written_says_the_same_when_it_is_read(kind, dora, form, tmp_path):
    base, file = model(kind), tmp_path / "mine.safetensors"
    moved = adapted(base, dora=dora, alpha=3.0, rank=2)
    adapters.save_lora(adapters.scaled(moved, 0.25), file, form=form)
    x = x_of(base)
    again = adapters.load_lora(base, file)
    torch.testing.assert_close(said(again, x), said(moved, x), rtol=0, atol=2e-6)
    half = adapters.load_lora(base, file, strength=0.5)
    torch.testing.assert_close(said(half, x), said(adapters.scaled(moved, 0.5), x), rtol=0, atol=2e-6)
    keys = list(load_file(file))
    mark = {"diffusers": ".lora_A.weight", "kohya": ".lora_down.weight"}[form]
    assert any(key.endswith(mark) for key in keys)
    assert all(key.startswith("lora_unet_") == (form == "kohya") for key in keys)


def test_of_two_the_named_one_is_written(tmp_path):
    base = model("dit")
    first = shaken(adapters.lora(base, name="a"), seed=1)
    both = shaken(adapters.lora(first, name="b"), seed=2)
    with pytest.raises(ValueError, match=r"has 2 adapters \(a, b\): name one"):
        adapters.save_lora(both, tmp_path / "a.safetensors")
    adapters.save_lora(both, tmp_path / "a.safetensors", name="a")
    again = adapters.load_lora(base, tmp_path / "a.safetensors")
    torch.testing.assert_close(said(again, x_of(base)), said(first, x_of(base)), rtol=0, atol=2e-6)
    adapters.save_lora(both, tmp_path / "b.safetensors", name="b")
    two = adapters.load_lora(again, tmp_path / "b.safetensors")
    torch.testing.assert_close(said(two, x_of(base)), said(both, x_of(base)), rtol=0, atol=2e-6)


def test_one_made_for_another_model_says_what_there_is(tmp_path):
    file = tmp_path / "mine.safetensors"
    adapters.save_lora(adapted(model("dit")), file)
    with pytest.raises(
        ModelFileError, match=r"made for another model: 20 of its 22 layers are not in this UNet, the first is tran"
    ):
        adapters.load_lora(model("unet"), file)
    tensors = load_file(file)
    key = next(k for k in tensors if k.endswith("lora_A.weight"))
    save_file({**tensors, key: torch.cat([tensors[key]] * 2, 1)}, file)
    with pytest.raises(
        ModelFileError, match=r"made for another model: .* here is 16 to \d+ channels, .* down \(4, 32\)"
    ):
        adapters.load_lora(model("dit"), file)
    save_file({k: v for k, v in tensors.items() if k != key}, file)
    with pytest.raises(ModelFileError, match="lacks its down"):
        adapters.load_lora(model("dit"), file)
    net = nn.Sequential(nn.Conv2d(3, 5, 3))
    adapters.save_lora(adapters.lora(net, "0", rank=2, dora=True), file)
    tensors, layer = load_file(file), r"transformer\.0 here is 3 to 5 channels, its weight \(5, 3, 3, 3\)"
    point = tensors["transformer.0.lora_A.weight"][..., :1, :1].clone()
    save_file({**tensors, "transformer.0.lora_A.weight": point}, file)
    with pytest.raises(ModelFileError, match=layer + r", in the file it has down \(2, 3, 1, 1\) and up \(5, 2, 1, 1\)"):
        adapters.load_lora(net, file)
    save_file({**tensors, "transformer.0.lora_magnitude_vector": torch.ones(3)}, file)
    with pytest.raises(ModelFileError, match=layer + r", in the file it has a magnitude \(3,\)"):
        adapters.load_lora(net, file)
    save_file({"other": torch.ones(1)}, file)
    with pytest.raises(ModelFileError, match="holds no LoRA: its first key is other"):
        adapters.load_lora(model("dit"), file)
    with pytest.raises(ValueError, match="form must be"):
        adapters.save_lora(adapted(model("dit")), file, form="other")
    with pytest.raises(ValueError, match="has 0 adapters"):
        adapters.save_lora(model("dit"), file)
