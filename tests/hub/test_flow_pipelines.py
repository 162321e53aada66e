"""Image to image, inpainting and LoRA of Stable Diffusion 3 and Flux: diffusers' own pipelines on the same weights."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import suffuse as sf
from suffuse import hub, samplers
from suffuse.hub.lora import _layers

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.hub import folders  # noqa: E402
from tests.hub.test_families import FLOW  # noqa: E402
from tests.hub.test_parity import close  # noqa: E402

STEPS, W, PROMPTS = 10, 5.0, ["a cat", "2 cats"]
KINDS = {
    ("sd3", "img2img"): diffusers.StableDiffusion3Img2ImgPipeline,
    ("sd3", "inpaint"): diffusers.StableDiffusion3InpaintPipeline,
    ("flux", "img2img"): diffusers.FluxImg2ImgPipeline,
    ("flux", "inpaint"): diffusers.FluxInpaintPipeline,
}


@dataclass
class Flow:
    """A pipeline, and the denoiser that was read from its folder."""

    name: str
    pipe: Any
    model: Any

    def other(self, loop):
        """Another of diffusers' loops around the same parts."""
        made = KINDS[self.name, loop](**self.pipe.components)
        made.scheduler = FLOW.from_config(self.pipe.scheduler.config)
        made.set_progress_bar_config(disable=True)
        return made

    def options(self, seed=2):
        size = {"height": 16, "width": 16, "num_inference_steps": STEPS, "guidance_scale": W}
        return size | {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"}

    def guided(self, model=None):
        model = model or self.model
        if self.name == "flux":
            return model.given(text=PROMPTS, guidance=W)
        return sf.guide(model.given(text=PROMPTS), model, W)

    def grid(self, pipe, steps=STEPS):
        return hub.times(pipe.scheduler, self.model.schedule)[-1 - steps :]

    def unpacked(self, z):
        """Flux's pipelines keep 2 x 2 latents in one token."""
        return F.pixel_shuffle(z.mT.unflatten(2, (4, 4)), 2) if self.name == "flux" else z

    def packed(self, z):
        return F.pixel_unshuffle(z, 2).flatten(2).mT if self.name == "flux" else z


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    torch.set_num_threads(1)
    made, root = {}, tmp_path_factory.mktemp("flows")

    def get(name):
        if name not in made:
            build = {
                "sd3": lambda f: folders.sd3(f, FLOW(shift=3.0), channels=16),
                "flux": lambda f: folders.flux(f, FLOW(use_dynamic_shifting=True)),
            }
            pipe = build[name](root / name)
            made[name] = Flow(name, pipe, hub.diffusers(root / name, size=(16, 16)))
        return made[name]

    return get


def drawn(shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoded(model, z):
    with torch.no_grad():
        return (model.codec.decode(z) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_image_to_image(flows, name):
    flow = flows(name)
    pipe = flow.other("img2img")
    z, noise = sf.noise((2, *flow.model.shape), seed=5), drawn((2, *flow.model.shape))
    want = flow.unpacked(pipe(PROMPTS, image=z, strength=0.6, **flow.options()).images)
    grid = flow.grid(pipe, 6)  # six of the ten steps
    mine = sf.sample(flow.guided(), noise, sampler=samplers.ddim, grid=grid, start=(z, float(grid[0])))
    close(mine, want)
    images = pipe(PROMPTS, image=z, strength=0.6, **(flow.options() | {"output_type": "pt"})).images
    close(decoded(flow.model, mine), images)
    assert (want - z).abs().mean() > 0.1


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_picture_is_encoded_as_in_their_pipeline(flows, name):
    """Their posterior's draw comes from their generator, before the noise; ours from a seed: the mean is shared."""
    flow, image = flows(name), sf.noise((2, 3, 16, 16), seed=5).clamp(-1, 1)
    pipe, seen = flow.other("img2img"), []
    pipe.scheduler.scale_noise = lambda z, t, noise: (seen.append(z), z)[1]
    pipe(PROMPTS, image=image / 2 + 0.5, strength=0.6, **flow.options())
    codec, draw = flow.model.codec, drawn((2, *flow.model.shape))
    with torch.no_grad():
        mine = codec.encode(image, seed=0)
        std = codec.net.encode(image).latent_dist.std * codec.scale
    close(mine - std * sf.noise(tuple(mine.shape), seed=0), seen[0] - std * draw)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_inpainting_replaces_what_is_known_after_every_step(flows, name):
    flow = flows(name)
    pipe = flow.other("inpaint")
    image, mask = sf.noise((2, 3, 16, 16), seed=5).clamp(-1, 1), torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 6:16] = 1
    noise = sf.noise((2, *flow.model.shape), seed=0)
    scaled, scale = [], pipe.scheduler.scale_noise
    pipe.scheduler.scale_noise = lambda z, t, noise: (scaled.append(z), scale(z, t, noise))[1]
    options = {"image": image / 2 + 0.5, "mask_image": mask, "strength": 1.0, "latents": noise} | flow.options()
    want = flow.unpacked(pipe(PROMPTS, **options).images)
    z, new = flow.unpacked(scaled[-1]), F.interpolate(mask, size=(8, 8))  # their own draw of the posterior
    for step in sf.run(flow.guided(), noise, sampler=samplers.ddim, grid=flow.grid(pipe)):
        alpha, sigma = flow.model.schedule(step.s)
        step.x = new * step.x + (1 - new) * (alpha * z + sigma * noise)
    close(step.x, want)
    assert (sf.sample(flow.guided(), noise, sampler=samplers.ddim, grid=flow.grid(pipe)) - want).abs().max() > 0.1


def test_their_sd3_inpainting_decodes_without_the_shift(flows):
    """Fault of the peer: StableDiffusion3InpaintPipeline encodes (latent - shift) scale and decodes z/scale: without
    adding the shift again, as its image to image pipeline does.
    """
    flow = flows("sd3")
    pipe, codec = flow.other("inpaint"), flow.model.codec
    z, mask = sf.noise((2, *flow.model.shape), seed=5), torch.ones(2, 1, 16, 16)
    image = sf.noise((2, 3, 16, 16), seed=5).clamp(0, 1)
    options = {"image": image, "mask_image": mask, "strength": 1.0, "latents": z}
    latents = pipe(PROMPTS, **options, **flow.options()).images
    images = pipe(PROMPTS, **options, **(flow.options() | {"output_type": "pt"})).images
    assert codec.shift > 0
    close(decoded(flow.model, latents - codec.shift * codec.scale), images)
    assert (decoded(flow.model, latents) - images).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_lora_in_diffusers_form(flows, name, tmp_path):
    flow, generator = flows(name), torch.Generator().manual_seed(0)
    net, tensors = flow.model.net.transformer, {}
    for layer in _layers(net):
        if any(part in layer for part in ("attn.", "ff", "proj_mlp")) and "norm" not in layer:
            out, into = net.get_submodule(layer).weight.shape
            tensors[f"transformer.{layer}.lora_A.weight"] = 0.2 * torch.randn(4, into, generator=generator)
            tensors[f"transformer.{layer}.lora_B.weight"] = 0.2 * torch.randn(out, 4, generator=generator)
    assert len(tensors) > 20
    save_file(tensors, tmp_path / "lora.safetensors", {"format": "pt"})
    changed, keys = hub.lora(flow.model, tmp_path / "lora.safetensors")
    assert keys.unexpected == keys.missing == [] and len(keys.matched) == len(tensors) / 2
    pipe, noise = flow.pipe, sf.noise((2, *flow.model.shape), seed=0)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    try:
        want = flow.unpacked(pipe(PROMPTS, latents=flow.packed(noise), **flow.options()).images)
    finally:
        pipe.unload_lora_weights()
    grid = flow.grid(pipe)
    close(sf.sample(flow.guided(changed), noise, sampler=samplers.ddim, grid=grid), want)
    plain = sf.sample(flow.guided(), noise, sampler=samplers.ddim, grid=grid)
    assert (plain - want).abs().max() > 0.1
    hub.save_lora(changed, tmp_path / "again.safetensors")
    again, _ = hub.lora(flow.model, tmp_path / "again.safetensors")
    close(sf.sample(flow.guided(again), noise, sampler=samplers.ddim, grid=grid), want)
