"""Latent diffusion and the cascade, at sizes that train in seconds: what fits together fits, and learns."""

import json

import pytest
import torch
import torch.nn.functional as F

import suffuse as sf
from suffuse import metrics
from suffuse.data.shapes import Scenes
from suffuse.recipes import cascade, latents
from suffuse.recipes.draw import decoded
from suffuse.recipes.run import Run
from suffuse.training.codecs import load_codec

QUIET = {"progress": False, "overwrite": True}


@pytest.fixture(scope="module")
def codec_run(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("codec")
    how = {"size": 32, "latent": 4, "width": 8, "multipliers": (1, 2, 2), "steps": 60, "batch_size": 24, "lr": 4e-3}
    return latents.train_autoencoder(out, **how, estimated=64, perceptual=0.0, adversarial=0.001, ema=0.9, **QUIET)


@pytest.mark.slow
def test_the_codec_learns_and_its_latents_have_unit_variance(codec_run):
    found = json.loads((codec_run.path / "metrics.json").read_text())
    assert 0.9 < found["latent_std"] < 1.1 and abs(found["latent_mean"]) < 0.1
    scenes = Scenes(latents.FRESH, 32)(0, 64).images
    flat = scenes.mean((0, 2, 3), keepdim=True).expand_as(scenes)
    assert found["psnr"]["value"] > metrics.psnr(flat, scenes).value + 0.5, "more than the best single colour"
    again = latents.measured(load_codec(codec_run.path / "codec"), scenes)
    assert again["psnr"]["value"] == pytest.approx(found["psnr"]["value"], rel=1e-4)
    assert again["latent_std"] == pytest.approx(found["latent_std"], rel=1e-4)
    assert codec_run.shape == (4, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["dit", "mmdit"])
def test_latents_keep_their_captions_and_the_model_its_codec(codec_run, tmp_path, net):
    how = {"width": 32, "depth": 1, "heads": 2, "steps": 3, "batch_size": 8, "size": 32}
    made = latents.train(
        tmp_path / "run", codec=codec_run.path, net=net, scenes=24, cache=tmp_path / "z", **how, **QUIET
    )
    model = Run.open(made.path).model()
    assert made.shape == (4, 8, 8) and type(model.net).__name__.lower() == net
    codec, world = load_codec(codec_run.path / "codec"), Scenes(1, 32)
    own = model.codec.net.state_dict()
    assert all(torch.equal(own[k], v) for k, v in codec.net.state_dict().items()) and model.codec.scale == codec.scale
    text = model.conditions["text"]
    set_ = sf.data.Latents(
        latents.Drawn(world, 24, text, pictures=False),
        sf.data.latents(latents.Drawn(world, 24), codec, tmp_path / "z", dtype=torch.float16).x,
    )
    rows = torch.tensor([20, 3])
    with torch.no_grad():
        z = codec.encode(world(0, 24).images, 0)[rows]
    torch.testing.assert_close(set_[rows]["x"], z, rtol=1e-2, atol=1e-2)
    said = [text.ids([c], length=40)[0].tolist() for c in world[rows].captions]
    assert set_[rows]["text"].tolist() == said
    x = decoded(model, sf.sample(model.given(text=set_[rows]["text"]), sf.noise((2, 4, 8, 8), 0), steps=2))
    torch.testing.assert_close(decoded(model, z), codec.decode(z).detach().clamp(-1, 1), rtol=1e-3, atol=1e-3)
    assert x.shape == (2, 3, 32, 32) and x.abs().max() <= 1


@pytest.mark.slow
def test_a_decoder_learns_on_beside_an_encoder_that_stays(codec_run, tmp_path):
    how = {"size": 32, "batch_size": 24, "estimated": 64, "perceptual": 0.0, "ema": 0.9}
    made = latents.train_autoencoder(tmp_path / "on", encoder=codec_run.path, steps=160, lr=4e-3, **how, **QUIET)
    before, after = (load_codec(p / "codec") for p in (codec_run.path, made.path))
    x = Scenes(3, 32)(0, 64).images
    z = before.encode(x, 0)
    assert torch.equal(after.encode(x, 0), z), "models of these latents stay right"
    worse, better = ((codec.decode(z) - x).abs().mean() for codec in (before, after))
    assert better < 0.95 * worse


def test_features_of_the_judge_in_use_have_a_say(tmp_path):
    how = {"size": 32, "latent": 2, "width": 4, "multipliers": (1, 1), "steps": 2, "batch_size": 2, "estimated": 2}
    with_, without = (latents.train_autoencoder(tmp_path / str(p), perceptual=p, **how, **QUIET) for p in (1.0, 0.0))
    a, b = (load_codec(made.path / "codec").net.state_dict() for made in (with_, without))
    assert any((a[k] - b[k]).abs().max() > 1e-4 for k in a)


def test_an_unknown_network_is_named():
    with pytest.raises(ValueError, match="'dit' or 'mmdit', got 'unet'"):
        latents.build("unet")


def test_augmentation_mixes_the_small_picture_with_noise_of_its_row():
    low, eps = Scenes(5, 32)(0, 3).images, sf.noise((3, 3, 64, 64), 1)
    torch.testing.assert_close(F.avg_pool2d(cascade.augmented(low, 0.0, eps), 2), low, rtol=0, atol=0.35)
    assert torch.equal(cascade.augmented(low, 1.0, eps), eps)
    flat = torch.full_like(low, 0.3)
    each = cascade.augmented(flat, torch.tensor([0.0, 0.2, 0.5]), eps)
    for row, s in zip(each, (0.0, 0.2, 0.5), strict=True):
        assert row.mean().item() == pytest.approx(0.3 * (1 - s), abs=0.01)
        assert row.std().item() == pytest.approx(s, abs=0.02)
    model = cascade.build(width=8, multipliers=(1, 1))
    told = cascade.given(model, low, s=0.2, seed=4)
    alone = cascade.given(model, low[2:], s=0.2, seed=4, first=2)
    assert (
        torch.equal(told.bound["low"][2:], alone.bound["low"])
        and told.bound["noise"].tolist() == [pytest.approx(0.2)] * 3
    )
    with pytest.raises(ValueError, match=r"s must be in \[0, 0.5\], the strengths of training, got 0.7"):
        cascade.given(model, low, s=0.7, seed=0)


@pytest.mark.slow
def test_the_upsampler_learns_to_use_the_small_picture_and_keeps_it(tmp_path):
    how = {"size": 32, "width": 8, "multipliers": (1, 2), "steps": 60, "batch_size": 8, "lr": 8e-3, "ema": 0.9}
    made = cascade.train(tmp_path / "run", **how, **QUIET)
    model, x = made.model(), Scenes(latents.FRESH, 32)(0, 16).images
    low = F.avg_pool2d(x, 2)
    mine = cascade.upsampled(model, low, s=0.05, nfe=8)

    def gap(small):
        return (F.avg_pool2d(mine, 2) - small).square().mean().item()

    assert gap(low) < 0.3 * gap(low.roll(1, 0)), (gap(low), gap(low.roll(1, 0)))


def test_small_pictures_are_measured_against_the_captions_they_were_asked_for(tmp_path):
    made = Run(tmp_path, "cascade", (3, 64, 64), {}, 0.0)
    with pytest.raises(ValueError, match="give both low and captions"):
        cascade.evaluate(made, low=torch.zeros(2, 3, 32, 32))


def test_latents_are_of_scenes_that_their_codec_has_not_seen(tmp_path):
    Run(tmp_path, "autoencoder", (8, 8, 8), {"seed": 4}, 0.0).write()
    with pytest.raises(ValueError, match="was trained on the scenes of seed 4, as seed=3 would be"):
        latents.train(tmp_path / "run", codec=tmp_path, seed=3)
