"""Other people's networks as feature spaces: each sees what its own preparation would show it."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import metrics, noise
from suffuse.metrics.clip_nets import TwoTowers


class Detector(nn.Module):
    """With the interface of NVIDIA's Inception in TorchScript."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        """Scores, or what they are made of."""
        assert img.dtype == torch.uint8 and img.shape[1] == 3
        cells = F.adaptive_avg_pool2d(img.float(), 2).flatten(1)
        return cells if return_features else cells[:, :1]


def smooth(n, h, w):
    """Pictures as a file holds them."""
    x = F.interpolate(noise((n, 3, 5, 5), 0), size=(h, w), mode="bicubic").clamp(-1, 1)
    return ((x + 1) * 127.5).round().byte()


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A tiny random DINOv2, its processor, and the folder that both were saved to."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    folder = tmp_path_factory.mktemp("dino") / "tiny-dino"
    torch.manual_seed(5)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**small, layerscale_value=1.0)).eval()
    for name, parameter in model.named_parameters():  # so that what is seen matters
        if name.endswith("weight") and parameter.ndim > 1:
            parameter.data.mul_(8.0)
    shown = {"size": {"shortest_edge": 36}, "crop_size": {"height": 28, "width": 28}, "resample": 3}
    processor = BitImageProcessorPil(**shown, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


@pytest.mark.parametrize("size", [(36, 36), (90, 60)], ids=str)
def test_a_dino_sees_what_its_own_processor_shows_it(dino, size):
    model, processor, folder = dino
    pictures = smooth(70, *size)  # more than one batch
    hwc = list(pictures.permute(0, 2, 3, 1).numpy())
    shown = processor(hwc, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    with torch.no_grad():
        wanted = model(pixel_values=shown).pooler_output
    see = metrics.features(folder)
    got = see((pictures.float() / 127.5 - 1).requires_grad_())
    assert (got - wanted).square().mean() < 2e-3 * wanted.var(0).mean(), "theirs rounds to bytes"
    assert see.name == "tiny-dino, 36 pixels, middle 28" and not got.requires_grad


def test_a_torchscript_file_gets_bytes_and_gives_features(tmp_path):
    file = tmp_path / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(Detector()), file)
    see, pictures = metrics.features(file), smooth(5, 8, 8)
    got = see(pictures.float() / 127.5 - 1)
    torch.testing.assert_close(got, F.adaptive_avg_pool2d(pictures.float(), 2).flatten(1), rtol=0, atol=1e-4)
    assert see.name == "inception-2015-12-05"
    grey = see(pictures[:, :1].float() / 127.5 - 1)
    assert torch.equal(grey[:, :4], grey[:, 4:8]) and torch.equal(grey[:, :4], got[:, :4]), "grey: thrice the channel"


def test_towers_are_a_feature_space():
    torch.manual_seed(0)
    towers = metrics.Towers.of_shapes(TwoTowers().state_dict())
    see = metrics.features(towers)
    x = (smooth(3, 32, 32).float() / 127.5 - 1).contiguous()
    torch.testing.assert_close(F.normalize(see(x), dim=-1), towers.image(x), rtol=0, atol=1e-6)
    assert "shapes" in see.name


def test_misuse_is_one_sentence(dino, tmp_path):
    model, processor, _ = dino
    with pytest.raises(ValueError, match=r"a folder or a TorchScript file \(.pt\) that is here, got 'dinov2'"):
        metrics.features("dinov2")
    with pytest.raises(ValueError, match="weights of a Dinov2Model are missing"):
        _saved(model, processor, tmp_path / "part", drop="layernorm.weight")
    see = metrics.features(dino[2])
    with pytest.raises(ValueError, match=r"images must be \(N, 1 or 3, H, W\), got \(2, 2, 28, 28\)"):
        see(torch.zeros(2, 2, 28, 28))
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        see(torch.full((2, 3, 28, 28), 200.0))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        metrics.features(bare)


def _saved(model, processor, folder, *, drop):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    state.pop(drop)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    metrics.features(folder)
