"""LoRA files in every form change the model as diffusers' and peft's own loaders do, and write back."""

import pytest
import torch
from safetensors.torch import save_file

import suffuse as sf
from suffuse import grids, hub, samplers
from suffuse.hub.lora import LowRank, _layers, _ldm, _roots, aliases
from suffuse.training.files import ModelFileError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from tests.hub import folders  # noqa: E402
from tests.hub.test_parity import PLAIN, close  # noqa: E402

STEPS, W, PROMPTS = 5, 5.0, ["a cat", "2 cats"]
DDIM = diffusers.DDIMScheduler(**folders.SD_BETAS, **PLAIN, set_alpha_to_one=False, steps_offset=1)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    return folders.stable_diffusion(folder, DDIM), hub.diffusers(folder)


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xl") / "sdxl"
    return folders.sdxl(folder, DDIM), hub.diffusers(folder)


def mine(model):
    noise = sf.noise((2, *model.shape), seed=0)
    guided = sf.guide(model.given(text=PROMPTS), model, W)
    return sf.sample(
        guided, noise, sampler=samplers.ddim, grid=grids.leading(model.schedule, STEPS, offset=1, end=1e-3)
    )


def theirs(pipe, model):
    options = {"num_inference_steps": STEPS, "guidance_scale": W, "output_type": "latent"}
    return pipe(PROMPTS, latents=sf.noise((2, *model.shape), seed=0), **options).images


def pairs(model, root, *parts):
    """Random (down, up) of the layers whose names have one of the parts."""
    generator, net = torch.Generator().manual_seed(0), _roots(model)[root]
    for name in _layers(net):
        if any(part in name for part in parts):
            weight = net.get_submodule(name).weight
            down = 0.3 * torch.randn(4, *weight.shape[1:], generator=generator)
            yield name, down, 0.3 * torch.randn(weight.shape[0], 4, *[1] * (weight.ndim - 2), generator=generator)


def changes(model, roots=("unet", "text_encoder")):
    """{(root, layer): (down, up)}: attention and convolutions of the unet, everything linear of the text encoders."""
    parts = {"unet": ("attn", "conv1")}
    return {(r, n): (a, b) for r in roots for n, a, b in pairs(model, r, *parts.get(r, ("proj", "fc")))}


def as_diffusers(model):
    tensors = {}
    for (root, name), (down, up) in changes(model).items():
        tensors |= {f"{root}.{name}.lora_A.weight": down, f"{root}.{name}.lora_B.weight": up}
    return tensors


def as_old_diffusers(model):
    tensors = {}
    for (root, name), (down, up) in changes(model, ("unet",)).items():
        if "attn" in name:
            site, _, layer = name.replace("to_out.0", "to_out").rpartition(".")
            stem = f"{root}.{site}.processor.{layer}_lora"
            tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return tensors


def as_kohya(model):
    tensors = {}
    for (root, name), (down, up) in changes(model, tuple(_roots(model))).items():
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[root]
        stem = prefix + name.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    return tensors


def written(tensors, file):
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"format": "pt"})
    return file


@pytest.mark.parametrize("form", [as_diffusers, as_old_diffusers, as_kohya])
def test_the_images_are_those_of_their_loader(sd, tmp_path, form):
    pipe, model = sd
    file = written(form(model), tmp_path / "lora.safetensors")
    plain = mine(model)
    changed, keys = hub.lora(model, file)
    assert keys.unexpected == keys.missing == []
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    try:
        want = theirs(pipe, model)
    finally:
        pipe.unload_lora_weights()
    close(mine(changed), want)
    assert (want - plain).abs().max() > 1  # it says something
    assert torch.equal(mine(model), plain)  # and the model itself is as it was
    assert torch.equal(mine(hub.lora(model, file, scale=0.0)[0]), plain)


def test_peft_files_with_their_alphas(sd, tmp_path):
    pipe, model = sd
    unet = diffusers.UNet2DConditionModel.from_config(pipe.unet.config).eval()
    unet.load_state_dict(pipe.unet.state_dict())
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False)
    wrapped = peft.get_peft_model(unet, config)
    wrapped.save_pretrained(tmp_path)
    changed, keys = hub.lora(model, tmp_path / "adapter_model.safetensors")
    assert keys.matched and not keys.unexpected
    x, text = sf.noise((2, *model.shape), seed=1), model.given(text=PROMPTS).bound["text"]
    with torch.no_grad():
        want = wrapped(x, 500, encoder_hidden_states=text).sample
        torch.testing.assert_close(changed.net(x, torch.full((2,), 500.0), text=text), want, rtol=0, atol=1e-4)
        assert (want - pipe.unet(x, 500, encoder_hidden_states=text).sample).abs().max() > 1e-2


def test_kohyas_names_of_sdxl_layers(xl, tmp_path):
    """Files of SDXL name layers as the original code of latent diffusion did; two text encoders are te1 and te2."""
    pipe, model = xl
    layers = pipe.unet.config.layers_per_block
    tensors = {}
    for (_, name), (down, up) in changes(model, ("unet",)).items():
        stem = f"lora_unet_{_ldm(name, layers)}".replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" not in tensors  # two blocks
    assert "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in tensors
    assert "lora_unet_output_blocks_0_1_transformer_blocks_0_attn2_to_k.lora_up.weight" in tensors
    file = written(tensors, tmp_path / "xl.safetensors")
    changed, keys = hub.lora(model, file)
    assert keys.unexpected == [] and len(keys.matched) == len(tensors) / 3
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    try:
        want = theirs(pipe, model)
    finally:
        pipe.unload_lora_weights()
    close(mine(changed), want)
    second = list(aliases("text_encoder_2", "encoder.layers.0.mlp.fc1", None))
    assert "lora_te2_text_model_encoder_layers_0_mlp_fc1" in second and not any("te1" in name for name in second)


def test_two_add_up_and_are_written_one_at_a_time(sd, tmp_path):
    _, model = sd
    file = written(as_diffusers(model), tmp_path / "lora.safetensors")
    half, _ = hub.lora(model, file, scale=0.5)
    twice, _ = hub.lora(half, file, scale=0.5)
    torch.testing.assert_close(mine(twice), mine(hub.lora(model, file)[0]), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="more than one LoRA"):
        hub.save_lora(twice, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="has no LoRA weights"):
        hub.save_lora(model, tmp_path / "out.safetensors")


def test_what_is_written_opens_in_diffusers_and_here(sd, tmp_path):
    pipe, model = sd
    changed, _ = hub.lora(model, written(as_kohya(model), tmp_path / "lora.safetensors"), scale=0.8)
    hub.save_lora(changed, tmp_path / "out.safetensors")
    again, _ = hub.lora(model, tmp_path / "out.safetensors")
    torch.testing.assert_close(mine(again), mine(changed), rtol=0, atol=1e-4)
    pipe.load_lora_weights(tmp_path, weight_name="out.safetensors")
    try:
        close(mine(changed), theirs(pipe, model))
    finally:
        pipe.unload_lora_weights()


def test_gradients_reach_the_low_rank_and_the_weights_are_shared(sd, tmp_path):
    _, model = sd
    changed, _ = hub.lora(model, written(as_diffusers(model), tmp_path / "lora.safetensors"))
    ours = {id(p) for p in model.net.parameters()}
    new = [p for p in changed.net.parameters() if id(p) not in ours]
    low = [m for m in changed.net.modules() if isinstance(m, LowRank)]
    assert len(new) == 2 * len(low) > 0
    changed.given(text="a cat")(sf.noise((1, *model.shape), seed=0), 0.5).x0.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in new)
    model.net.zero_grad(set_to_none=True)


def test_keys_that_fit_nothing(sd, tmp_path):
    _, model = sd
    tensors = as_diffusers(model)
    name = next(iter(tensors))
    tensors["unet.nowhere.lora_A.weight"] = torch.ones(4, 4)
    file = written(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ModelFileError, match=r"1 keys are unexpected, the first is unet\.nowhere\.lora_A\.weight"):
        hub.lora(model, file)
    _, keys = hub.lora(model, file, strict=False)
    assert keys.unexpected == ["unet.nowhere.lora_A.weight"] and len(keys.matched) == (len(tensors) - 1) / 2
    half = {k: v for k, v in as_diffusers(model).items() if k != name}
    with pytest.raises(ModelFileError, match="1 keys are missing, the first is the down beside unet"):
        hub.lora(model, written(half, file))
    with pytest.raises(ModelFileError, match="nothing fits StableDiffusion; the first of 1 keys is other"):
        hub.lora(model, written({"other": torch.ones(1)}, file), strict=False)
    wide = {k: torch.cat([v, v], 1) if k == name else v for k, v in as_diffusers(model).items()}
    with pytest.raises(ModelFileError, match=r"its LoRA has down \(4, "):
        hub.lora(model, written(wide, file))
