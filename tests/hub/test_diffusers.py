"""What a loaded pipeline is: conditions by name, one forward for guidance, a codec; and what is refused."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load, load_file, save_file

import suffuse as sf
from suffuse import grids, hub, samplers
from suffuse.codec import Codec
from suffuse.training.files import ModelFileError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from suffuse.hub.schedule import index  # noqa: E402
from tests.hub import folders  # noqa: E402


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved Stable Diffusion, read only."""
    folder = tmp_path_factory.mktemp("sd")
    folders.stable_diffusion(folder, diffusers.PNDMScheduler(**folders.SD_BETAS, skip_prk_steps=True, steps_offset=1))
    return folder


@pytest.fixture
def model(saved):
    return hub.diffusers(saved)


@pytest.fixture
def sd(saved, tmp_path):
    """A copy of it, to break."""
    folder = tmp_path / "sd"
    shutil.copytree(saved, folder)
    return folder


def edit(file, **changes):
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | changes))


def calls(net):
    """Rows of every forward of a module, from now on."""
    rows = []
    net.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


# What it is


def test_guidance_is_one_forward_of_twice_the_batch(model):
    rows = calls(model.net.unet)
    guided = sf.guide(model.given(text=["a cat", "2 cats", "ugly"]), model, 7.5)
    sf.sample(guided, sf.noise((3, *model.shape), seed=0), steps=4)
    assert rows == [6] * 4


def test_prompts_are_encoded_once_and_not_at_every_step(model):
    spec = model.conditions["text"]
    tokens = []
    spec.encoders[0].net.register_forward_hook(lambda *_: tokens.append(1))
    guided = sf.guide(model.given(text="a cat"), model, 7.5)
    sf.sample(guided, sf.noise((1, *model.shape), seed=0), steps=4)
    assert len(tokens) == 2


def test_the_null_of_text_is_the_empty_prompt(model):
    x, rows = sf.noise((2, *model.shape), seed=0), torch.tensor([True, False])
    told = model.given(text="a cat")
    assert torch.equal(model(x, 0.5).eps, model.given(text="")(x, 0.5).eps)
    assert not torch.equal(model(x, 0.5).eps, told(x, 0.5).eps)
    some = told.given(text=["a cat"] * 2).forget(rows, x)
    torch.testing.assert_close(some.told(x)["text"], model.given(text=["", "a cat"]).told(x)["text"])


def test_a_row_does_not_depend_on_its_batch_mates(model):
    noise, prompts = sf.noise((3, *model.shape), seed=0), ["a cat", "2 cats", "ugly"]
    options = {"sampler": samplers.ddim, "grid": grids.leading(model.schedule, 10, offset=1)}
    batch = sf.guide(model.given(text=prompts), model, 7.5)
    together = sf.sample(batch, noise, **options)
    for i, prompt in enumerate(prompts):
        one = sf.sample(sf.guide(model.given(text=prompt), model, 7.5), noise[i : i + 1], **options)
        torch.testing.assert_close(one[0], together[i], rtol=0, atol=1e-4)
        taken = sf.sample(batch.rows([i]), noise[i : i + 1], **options)
        torch.testing.assert_close(taken[0], together[i], rtol=0, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_text_is_encoded_as_theirs_bit_for_bit(sd, masked):
    edit(sd / "text_encoder" / "config.json", use_attention_mask=masked)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd)
    prompts = ["a cat", "2 Ugly  cats!", ""]
    theirs, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
    model = hub.diffusers(sd)
    assert torch.equal(model.given(text=prompts).bound["text"], theirs)
    torch.testing.assert_close(model.told(sf.noise((3, *model.shape), seed=0))["text"], empty)


def test_the_codec_draws_the_posterior_and_undoes_its_scale(model):
    codec, image = model.codec, sf.noise((2, 3, 16, 16), seed=1).clamp(-1, 1)
    assert isinstance(codec, Codec) and codec.scale == 0.18215
    with torch.no_grad():
        posterior = codec.net.encode(image).latent_dist
        z = codec.encode(image, seed=4)
        drawn = (z / codec.scale - posterior.mean) / posterior.std
        torch.testing.assert_close(drawn, sf.noise(tuple(z.shape), seed=4), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(codec.encode(image, None), posterior.mean * 0.18215)
        torch.testing.assert_close(codec.decode(posterior.mean * 0.18215), codec.net.decode(posterior.mean).sample)


def test_a_shifted_latent_is_shifted_back(sd):
    edit(sd / "vae" / "config.json", shift_factor=0.5)
    codec = hub.diffusers(sd).codec
    with torch.no_grad():
        z = torch.ones(1, 4, 4, 4)
        torch.testing.assert_close(codec.decode((z - 0.5) * codec.scale), codec.net.decode(z).sample)
        mean = codec.net.encode(image := torch.zeros(1, 3, 8, 8)).latent_dist.mean
        a, b = codec.encode(image, seed=0), hub.diffusers(sd).codec.encode(image, seed=0)
        assert torch.equal(a, b)
        std = codec.net.encode(image).latent_dist.std
        torch.testing.assert_close(a, (mean + std * sf.noise((1, 4, 4, 4), seed=0) - 0.5) * codec.scale)


def test_the_network_is_told_their_integers_bit_for_bit(model):
    schedule = model.schedule
    for i in range(1000):
        assert index(schedule, (i + 1) / 1000) == i
    t = torch.arange(1, 1001) / 1000
    assert torch.equal(index(schedule, t), torch.arange(1000.0))
    assert index(schedule, 0.5005) == pytest.approx(499.5)
    assert index(schedule, 0.0) == index(schedule, torch.zeros(())) == 0.0


def test_dtype_and_device(saved):
    model = hub.diffusers(saved, dtype=torch.bfloat16, device="cpu")
    x = sf.noise((1, *model.shape), seed=0)
    told = model.given(text="a cat")
    assert {p.dtype for p in (*model.net.parameters(), *model.codec.net.parameters())} == {torch.bfloat16}
    assert told.bound["text"].dtype == torch.bfloat16 and told(x, 0.5).eps.dtype == torch.float32
    assert model.codec.decode(model.codec.encode(torch.zeros(1, 3, 8, 8), seed=0)).dtype == torch.float32
    assert next(hub.diffusers(saved).conditions["text"].encoders[0].net.parameters()).dtype == torch.float32


def test_gradients_reach_the_latents_and_no_frozen_weight(model):
    x = sf.noise((1, *model.shape), seed=0).requires_grad_()
    model.codec.decode(model.given(text="a cat")(x, 0.5).x0).sum().backward()
    assert x.grad.abs().sum() > 0
    frozen = [model.codec.net, model.conditions["text"].encoders[0].net]
    assert all(p.grad is None for net in frozen for p in net.parameters())
    assert all(p.grad is not None for p in model.net.unet.conv_in.parameters())


def test_classes_are_a_label(tmp_path):
    folders.ddpm(tmp_path, num_class_embeds=3)
    model = hub.diffusers(tmp_path)
    x = sf.noise((2, *model.shape), seed=0)
    mine = model.given(label=[0, 2])(x, 0.5).eps
    theirs = model.net.unet(x, 499, class_labels=torch.tensor([0, 2])).sample
    assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match="no null for 'label'"):
        model(x, 0.5)


def test_clip_text_in_the_old_files_names_is_read(saved, sd):
    """Published encoders have keys under `text_model.`, and a buffer of positions."""
    file = sd / "text_encoder" / "model.safetensors"
    old = {"text_model." + k.removeprefix("text_model."): v for k, v in load_file(file).items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, file, {"format": "pt"})
    a, b = (hub.diffusers(f).given(text="a cat").bound["text"] for f in (saved, sd))
    assert torch.equal(a, b)


def test_a_network_of_any_size_or_of_an_oblong_one(tmp_path):
    for size, shape in ((None, (3,)), ([8, 16], (3, 8, 16))):
        folders.ddpm(tmp_path)
        edit(tmp_path / "unet" / "config.json", sample_size=size)
        assert hub.diffusers(tmp_path).shape == shape


# What is refused


def refuses(folder, *words, error=ModelFileError):
    with pytest.raises(error, match=".*".join(map(re.escape, words))):
        hub.diffusers(folder)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "text_encoder/model.safetensors",
        "tokenizer",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named(sd, file):
    (sd / file).rename(sd / "elsewhere")
    refuses(sd, str(sd / file), "is missing")


def test_a_missing_folder_is_named(tmp_path):
    refuses(tmp_path / "nothing", str(tmp_path / "nothing"), "is missing")
    refuses("nobody/nothing", "nobody/nothing is neither a folder nor in the Hugging Face cache", "hf download")


@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")])
def test_pickles_are_refused_unread(sd, part, stem):
    for file in (sd / part).glob("*.safetensors"):
        file.unlink()
    (sd / part / f"{stem}.bin").write_bytes(b"\x80\x04not even a pickle")
    refuses(sd, f"{stem}.bin, a pickle", "safetensors")


def test_files_cut_short_or_of_something_else_are_refused(sd):
    file = sd / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    refuses(sd, str(file), "not a whole safetensors file")
    tensors = {k: v for k, v in load(whole).items() if k != "conv_in.bias"}
    save_file(tensors, file, {"format": "pt"})
    refuses(sd, "1 weights are missing", "conv_in.bias")
    save_file(load(whole) | {"surplus": torch.ones(1)}, file, {"format": "pt"})
    refuses(sd, "1 weights are unexpected", "surplus")
    (sd / "unet" / "config.json").write_text("{")
    refuses(sd, str(sd / "unet" / "config.json"), "not JSON")


def test_a_shard_that_is_missing_or_elsewhere_is_named(sd):
    unet = sd / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model-00001-of-00002.safetensors")
    names = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "two.safetensors"}
    listing = unet / "diffusion_pytorch_model.safetensors.index.json"
    listing.write_text(json.dumps({"weight_map": names}))
    refuses(sd, str(unet / "two.safetensors"), "is missing")
    listing.write_text(json.dumps({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}))
    refuses(sd, "../vae/diffusion_pytorch_model.safetensors", "not a file of its own folder")


def test_unsupported_pipelines_and_parts(sd):
    edit(sd / "model_index.json", unet=["diffusers", "UNet3DConditionModel"])
    refuses(sd, "unet is UNet3DConditionModel, supported is UNet2DConditionModel", error=ValueError)
    edit(sd / "model_index.json", _class_name="KandinskyPipeline")
    refuses(sd, "KandinskyPipeline; supported are DDPMPipeline", "StableDiffusionPipeline", error=ValueError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_type": "flow_prediction"}, "'flow_prediction' is not supported; supported are epsilon"),
        ({"beta_schedule": "sigmoid"}, "'sigmoid' is not supported; supported are linear, scaled_linear"),
        ({"trained_betas": [0.1, 0.2]}, "2 trained_betas, but num_train_timesteps is 1000"),
        ({"variance_type": "learned"}, "variance_type='learned' is not supported"),
        ({"timestep_type": "continuous"}, "timestep_type='continuous' is not supported, only 'discrete'"),
        ({"offset_of_betas": 3}, "unknown key 'offset_of_betas'"),
    ],
)
def test_configs_that_would_change_the_schedule(sd, changes, words):
    edit(sd / "scheduler" / "scheduler_config.json", **changes)
    refuses(sd, words, error=ValueError)


def test_schedulers_of_other_families(sd):
    edit(sd / "model_index.json", scheduler=["diffusers", "RePaintScheduler"])
    refuses(
        sd,
        "RePaintScheduler is not supported; supported are DDIMScheduler, DDPMScheduler",
        error=ValueError,
    )


def test_what_a_scheduler_leaves_out_is_its_classes_default(tmp_path):
    folders.ddpm(tmp_path)
    edit(tmp_path / "model_index.json", scheduler=["diffusers", "HeunDiscreteScheduler"])
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    betas = diffusers.HeunDiscreteScheduler().betas
    assert hub.diffusers(tmp_path).schedule.betas == pytest.approx(betas.tolist(), rel=1e-5)


def test_networks_told_more_or_other_things(tmp_path):
    folders.stable_diffusion(tmp_path / "lcm", diffusers.DDIMScheduler(), time_cond_proj_dim=8)
    refuses(tmp_path / "lcm", "time_cond_proj_dim=8 is not supported", error=ValueError)
    folders.stable_diffusion(tmp_path / "inpaint", diffusers.DDIMScheduler(), in_channels=8)
    refuses(tmp_path / "inpaint", "8 channels in is not supported", error=ValueError)
    folders.ddpm(tmp_path / "sde", time_embedding_type="fourier")
    refuses(tmp_path / "sde", "got 'fourier'", error=ValueError)


def test_wrong_prompts(model):
    with pytest.raises(TypeError, match=r"unknown condition 'prompt': StableDiffusion takes text"):
        model.given(prompt="a cat")
    with pytest.raises(TypeError, match=r"text must be a str or a list of str, got 3"):
        model.given(text=3)
    with pytest.raises(ValueError, match=r"text has 102 tokens, the model reads 77"):
        model.given(text="z " * 100)
    with pytest.raises(ValueError, match="at least one prompt"):
        model.given(text=[])
    with pytest.raises(ValueError, match="text was given for 2 rows, the batch has 3"):
        model.given(text=["a", "b"])(sf.noise((3, *model.shape), seed=0), 0.5)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_missing_extra_says_what_to_install(saved, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library} cannot be imported.*pip install 'suffuse\[hub\]'"):
        hub.diffusers(saved)


def test_importing_suffuse_imports_neither_library():
    code = "import sys, suffuse.hub; sys.exit(any(m in sys.modules for m in ('diffusers', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_network_is_never_asked(saved, monkeypatch):
    import socket

    def refuse(*args, **options):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    hub.diffusers(saved).given(text="a cat")
