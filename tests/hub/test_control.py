"""ControlNet, T2I-Adapter, image to image and inpainting: what diffusers' own pipelines make of the same weights."""

import pytest
import torch

import suffuse as sf
from suffuse import grids, hub, samplers
from suffuse.training.files import ModelFileError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.hub import folders  # noqa: E402
from tests.hub.test_parity import PLAIN, close  # noqa: E402

STEPS, W, PROMPTS = 10, 5.0, ["a cat", "2 cats"]
DDIM = diffusers.DDIMScheduler(**folders.SD_BETAS, **PLAIN, set_alpha_to_one=False, steps_offset=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def sd(root):
    return folders.stable_diffusion(root / "sd", DDIM), hub.diffusers(root / "sd")


@pytest.fixture(scope="module")
def xl(root):
    return folders.sdxl(root / "xl", DDIM), hub.diffusers(root / "xl")


def controlnet(pipe, folder, seed=3):
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_channels=3)
    net.register_to_config(conditioning_embedding_out_channels=(8, 16))
    net = diffusers.ControlNetModel.from_config(net.config)
    net.controlnet_cond_embedding.blocks[-1].stride = (2, 2)  # 2 pixels per latent here
    net = folders.spread(net, 0.3, seed)
    net.save_pretrained(folder)
    return net


def picture(seed):
    return sf.noise((2, 3, 16, 16), seed=seed).clamp(-1, 1)


def told(pipe, model, **more):
    noise = sf.noise((2, *model.shape), seed=0)
    options = {"num_inference_steps": STEPS, "guidance_scale": W, "output_type": "latent", "latents": noise}
    return noise, options | more


def guided(model, **more):
    return sf.guide(model.given(text=PROMPTS, **more), model.given(**more), W)


def leading(model):
    return grids.leading(model.schedule, STEPS, offset=1, end=1e-3)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_a_controlnet_steers_as_in_their_pipeline(family, root, request):
    pipe, model = request.getfixturevalue(family)
    net = controlnet(pipe, root / f"{family}-controlnet")
    kind = {"sd": diffusers.StableDiffusionControlNetPipeline, "xl": diffusers.StableDiffusionXLControlNetPipeline}
    theirs = kind[family](**pipe.components, controlnet=net, **({} if family == "sd" else {"add_watermarker": False}))
    theirs.set_progress_bar_config(disable=True)
    steered = hub.controlnet(model, root / f"{family}-controlnet", strength=0.7)
    noise, options = told(pipe, model)
    image = picture(4)
    mine = sf.sample(guided(steered, control=image), noise, sampler=samplers.ddim, grid=leading(model))
    want = theirs(PROMPTS, image=image / 2 + 0.5, controlnet_conditioning_scale=0.7, **options).images
    close(mine, want)
    plain = sf.sample(guided(model), noise, sampler=samplers.ddim, grid=leading(model))
    assert (mine - plain).abs().max() > 0.1
    silent = sf.sample(guided(steered), noise, sampler=samplers.ddim, grid=leading(model))
    assert torch.equal(silent, plain)
    theirs.save_pretrained(root / f"{family}-whole")
    whole = hub.diffusers(root / f"{family}-whole")
    assert torch.equal(
        whole.given(control=image)(noise, 0.5).x0,
        hub.controlnet(model, root / f"{family}-controlnet").given(control=image)(noise, 0.5).x0,
    )


def test_two_controlnets_add_up_as_theirs(sd, root):
    pipe, model = sd
    nets = [controlnet(pipe, root / f"net{seed}", seed) for seed in (5, 6)]
    parts = {k: v for k, v in pipe.components.items() if k != "controlnet"}
    theirs = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=nets)
    theirs.set_progress_bar_config(disable=True)
    both = hub.controlnet(hub.controlnet(model, root / "net5", strength=0.5), root / "net6", name="depth")
    noise, options = told(pipe, model)
    a, b = picture(1), picture(2)
    mine = sf.sample(guided(both, control=a, depth=b), noise, sampler=samplers.ddim, grid=leading(model))
    images, strength = [a / 2 + 0.5, b / 2 + 0.5], [0.5, 1.0]
    close(mine, theirs(PROMPTS, image=images, controlnet_conditioning_scale=strength, **options).images)
    with pytest.raises(ValueError, match="already has a condition 'depth'"):
        hub.controlnet(both, root / "net5", name="depth")


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_an_adapter_steers_as_in_their_pipeline(family, sd, root):
    torch.manual_seed(0)
    if family == "sd":
        (pipe, model), more = sd, {"requires_safety_checker": False}
        net, kind = diffusers.T2IAdapter(3, [16, 32], 1, 2), diffusers.StableDiffusionAdapterPipeline
    else:  # XL's adapters have four levels, from half the latents' size on
        pipe, more = folders.sdxl(root / "deep", DDIM, deep=True), {}
        model, kind = hub.diffusers(root / "deep"), diffusers.StableDiffusionXLAdapterPipeline
        net = diffusers.T2IAdapter(3, [16, 32, 32, 32], 1, 4, adapter_type="full_adapter_xl")
    folders.spread(net, 0.3).save_pretrained(root / f"{family}-adapter")
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"} | more
    theirs = kind(**parts, adapter=net)
    theirs.set_progress_bar_config(disable=True)
    steered = hub.adapter(model, root / f"{family}-adapter", strength=0.7)
    noise, options = told(pipe, model)
    image = picture(4)
    mine = sf.sample(guided(steered, adapter=image), noise, sampler=samplers.ddim, grid=leading(model))
    want = theirs(PROMPTS, image=image / 2 + 0.5, adapter_conditioning_scale=0.7, **options).images
    close(mine, want)
    plain = sf.sample(guided(steered), noise, sampler=samplers.ddim, grid=leading(model))
    assert (mine - plain).abs().max() > 0.1


def test_rows_with_and_without_a_picture_share_a_batch(sd, root):
    pipe, model = sd
    controlnet(pipe, root / "rows")
    steered = hub.controlnet(model, root / "rows").given(text=PROMPTS, control=picture(4))
    x = sf.noise((2, *model.shape), seed=0)
    some = steered.forget(torch.tensor([False, True]), x)
    with torch.no_grad():
        torch.testing.assert_close(some(x, 0.5).eps[:1], steered(x, 0.5).eps[:1], rtol=0, atol=1e-5)
        torch.testing.assert_close(some(x, 0.5).eps[1:], model(x, 0.5).eps[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_image_to_image(family, request):
    pipe, model = request.getfixturevalue(family)
    kind = {"sd": diffusers.StableDiffusionImg2ImgPipeline, "xl": diffusers.StableDiffusionXLImg2ImgPipeline}[family]
    theirs = kind(**pipe.components, **({} if family == "sd" else {"add_watermarker": False}))
    theirs.set_progress_bar_config(disable=True)
    z = model.codec.encode(picture(5), seed=1).detach()
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    run = {"num_inference_steps": STEPS, "guidance_scale": W, "output_type": "latent"}
    want = theirs(PROMPTS, image=z, strength=0.6, generator=torch.Generator().manual_seed(2), **run).images
    grid = leading(model)[-7:]  # six of the ten steps
    mine = sf.sample(guided(model), noise, sampler=samplers.ddim, grid=grid, start=(z, float(grid[0])))
    close(mine, want)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_inpainting_replaces_what_is_known_after_every_step(family, request):
    pipe, model = request.getfixturevalue(family)
    kind = {"sd": diffusers.StableDiffusionInpaintPipeline, "xl": diffusers.StableDiffusionXLInpaintPipeline}[family]
    theirs = kind(**pipe.components, **({} if family == "sd" else {"add_watermarker": False}))
    theirs.set_progress_bar_config(disable=True)
    z = model.codec.encode(picture(5), seed=1).detach()
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 6:16] = 1
    noise, options = told(pipe, model)
    masked = {"masked_image_latents": torch.zeros_like(z), "height": 16, "width": 16}
    want = theirs(PROMPTS, image=z, mask_image=mask, strength=1.0, **masked, **options).images
    new = torch.nn.functional.interpolate(mask, size=(8, 8))
    for step in sf.run(guided(model), noise, sampler=samplers.ddim, grid=leading(model)):
        alpha, sigma = model.schedule(step.s) if step.k < STEPS - 1 else (1.0, 0.0)
        step.x = new * step.x + (1 - new) * (alpha * z + sigma * noise)
    close(step.x, want)


def test_an_inpainting_unet_is_told_mask_and_picture(root):
    pipe = folders.stable_diffusion(root / "nine", DDIM, in_channels=9)
    theirs = diffusers.StableDiffusionInpaintPipeline(**pipe.components)
    theirs.set_progress_bar_config(disable=True)
    model = hub.diffusers(root / "nine")
    image, mask = picture(5), torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 6:16] = 1
    noise, options = told(pipe, model)
    inpaint = model.given(inpaint=(image, mask)).bound["inpaint"]
    latents = {"masked_image_latents": inpaint[:, 1:], "height": 16, "width": 16}
    want = theirs(PROMPTS, image=image / 2 + 0.5, mask_image=mask, strength=1.0, **latents, **options).images
    close(sf.sample(guided(model, inpaint=(image, mask)), noise, sampler=samplers.ddim, grid=leading(model)), want)
    with torch.no_grad():
        posterior = model.codec.net.encode(image * (mask < 0.5)).latent_dist
        drawn = (inpaint[:, 1:] / model.codec.scale - posterior.mean) / posterior.std
        torch.testing.assert_close(drawn, sf.noise(tuple(drawn.shape), seed=0), rtol=1e-3, atol=1e-3)
        everything = model.given(inpaint=(torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)))
        torch.testing.assert_close(everything(noise, 0.5).eps, model(noise, 0.5).eps)
    with pytest.raises(ValueError, match="mask must be 0 or 1"):
        model.given(inpaint=(image, 0.5 * mask))


def test_pictures_and_folders_that_do_not_fit(sd, xl, root):
    pipe, model = sd
    controlnet(pipe, root / "fit")
    steered = hub.controlnet(model, root / "fit")
    with pytest.raises(ValueError, match=r"control must have shape \(rows, 3, H, W\), got \(2, 1, 16, 16\)"):
        steered.given(control=torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r"control must lie in \[-1, 1\], got 0 to 2"):
        steered.given(control=torch.linspace(0, 2, 768).reshape(1, 3, 16, 16))
    with pytest.raises(ModelFileError, match="holds a UNet2DConditionModel, not a ControlNetModel"):
        hub.controlnet(model, root / "sd" / "unet")
    with pytest.raises(ValueError, match="was made for text of 16 channels, this model has 32"):
        hub.controlnet(xl[1], root / "fit")
    with pytest.raises(TypeError, match=r"steers Stable Diffusion .*, not function"):
        hub.controlnet(sf.Denoiser(lambda x, t: x, model.schedule), root / "fit")
