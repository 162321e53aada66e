"""Out: folders that diffusers opens, samplers as its schedulers, networks as ONNX."""

import importlib
import json
import sys

import pytest
import torch

import suffuse as sf
from suffuse import grids, hub, nets, samplers, schedules
from suffuse.training.files import ModelFileError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.hub import folders  # noqa: E402
from tests.hub.test_families import DDIM, FLOW, TABLE  # noqa: E402
from tests.hub.test_parity import close  # noqa: E402

STEPS = 10


def trained(net, schedule, predicts, steps=60):
    """A network taught the real digits for a moment, so that its answers are not zero."""
    pixels = _digits()
    model = sf.Denoiser(net, schedule, predicts)
    loss = sf.losses.denoising
    return sf.fit(loss, pixels, model, steps=steps, batch_size=32, lr=2e-3, seed=0, progress=False).ema


def _digits():
    pytest.importorskip("sklearn")
    return sf.data.digits("train")


def unet(**conditions):
    torch.manual_seed(0)
    return nets.UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, conditions=conditions)


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return trained(unet(label=nets.Label(10)), schedules.Linear(), "velocity")


@pytest.mark.parametrize("table", [None, schedules.Discrete.scaled_linear().zero_terminal_snr()], ids=["eps", "v"])
def test_a_model_trained_here_opens_in_diffusers_and_draws_the_same(digits, tmp_path, table):
    hub.to_diffusers(digits, tmp_path / "out", shape=(1, 8, 8), table=table)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe) is diffusers.DDIMPipeline
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(4, torch.Generator().manual_seed(3), num_inference_steps=STEPS, output_type="pt").images
    noise = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    on = digits.on(table or schedules.Discrete.ddpm())
    grid = (grids.leading if table is None else grids.trailing)(on.schedule, STEPS)
    mine = sf.sample(on, noise, sampler=samplers.ddim, grid=grid)
    close((mine / 2 + 0.5).clamp(0, 1), theirs)
    assert theirs.std() > 0.1
    labels = torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        out = pipe.unet(noise, 500, class_labels=labels).sample
        (alpha, sigma), p = on.schedule(0.501), digits.given(label=labels).on(on.schedule)(noise, 0.501)
        torch.testing.assert_close(out, p.eps if table is None else alpha * p.eps - sigma * p.x0, rtol=0, atol=1e-4)
    again = hub.diffusers(tmp_path / "out")
    assert again.shape == (1, 8, 8) and again.schedule == schedules.Linear()
    assert torch.equal(again.given(label=labels)(noise, 0.4).x0, digits.given(label=labels)(noise, 0.4).x0)


def test_another_process_is_told_what_to_import(digits, tmp_path):
    """diffusers imports no module because a file names it; its own words say which one it wants."""
    hub.to_diffusers(digits, tmp_path / "out", shape=(1, 8, 8))
    assert sys.modules.pop("suffuse.hub.portable", None) is not None  # this process has it: to_diffusers saw to that
    with pytest.raises(ValueError, match=r"import suffuse\.hub\.portable before calling"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    importlib.import_module("suffuse.hub.portable")
    diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")


def test_what_diffusers_saves_again_still_opens(digits, tmp_path):
    hub.to_diffusers(digits, tmp_path / "out", shape=(1, 8, 8))
    diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    model, x = hub.diffusers(tmp_path / "again"), sf.noise((2, 1, 8, 8), seed=0)
    assert torch.equal(model(x, 0.4).x0, digits(x, 0.4).x0)


def test_a_transformer_with_learned_variance_too(tmp_path):
    torch.manual_seed(0)
    net = folders.spread(nets.DiT(1, patch=4, width=16, depth=1, heads=2, out_channels=2))
    model = sf.Denoiser(net, schedules.Discrete.cosine(), "eps", variance="range", shape=(1, 8, 8))
    hub.to_diffusers(model, tmp_path / "out")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    x = sf.noise((2, 1, 8, 8), seed=0)
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(x, 299).sample, model(x, 0.3).eps, rtol=0, atol=1e-4)


def test_a_network_from_diffusers_goes_back_as_what_it_was(tmp_path):
    pipe = folders.sdxl(tmp_path / "in", DDIM)
    model = hub.diffusers(tmp_path / "in")
    with torch.no_grad():
        for p in model.net.unet.conv_out.parameters():
            p.mul_(0.5)
    hub.to_diffusers(model, tmp_path / "out", like=tmp_path / "in")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(back.unet.conv_out.weight, 0.5 * pipe.unet.conv_out.weight)
    assert torch.equal(back.vae.decoder.conv_in.weight, pipe.vae.decoder.conv_in.weight)
    with pytest.raises(ValueError, match="say like= with the folder"):
        hub.to_diffusers(model, tmp_path / "other")


def test_what_cannot_be_written(digits, tmp_path):
    with pytest.raises(ValueError, match="say the shape"):
        hub.to_diffusers(digits, tmp_path / "out")
    with pytest.raises(TypeError, match="Linear is no network of suffuse"):
        hub.to_diffusers(sf.Denoiser(torch.nn.Linear(2, 2), schedules.VP(), "eps"), tmp_path / "out", shape=(2,))
    assert not (tmp_path / "out").exists()
    hub.to_diffusers(digits, tmp_path / "out", shape=(1, 8, 8))
    file = tmp_path / "out" / "unet" / "config.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in about.items() if k != "predicts"}))
    with pytest.raises(ModelFileError, match="does not say predicts"):
        hub.diffusers(tmp_path / "out")


# Samplers in their pipelines


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    pipe = folders.stable_diffusion(folder, diffusers.PNDMScheduler(**TABLE, skip_prk_steps=True))
    return pipe, hub.diffusers(folder), pipe.scheduler


def through(pipe, model, scheduler, **options):
    pipe.scheduler = scheduler
    run = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent"} | options
    return pipe(["a cat"] * 2, latents=sf.noise((2, *model.shape), seed=0), **run).images


def ours(model, **options):
    guided = sf.guide(model.given(text="a cat"), model, 5.0)
    return sf.sample(guided, sf.noise((2, *model.shape), seed=0), **options)


@pytest.mark.parametrize(
    "sampler",
    [
        None,
        samplers.ddim,
        samplers.dpmpp(order=3),
        samplers.unipc(order=2),
        samplers.heun,
        samplers.dpmpp_2s,
        samplers.rk4,
    ],
    ids=str,
)
def test_a_sampler_in_their_pipeline_draws_what_it_draws_here(sd, sampler):
    pipe, model, like = sd
    scheduler = hub.Scheduler(sampler, like=like, size=256)
    close(through(pipe, model, scheduler), ours(model, sampler=sampler, steps=STEPS))
    assert len(scheduler.timesteps) == samplers.plan_for(model.schedule, sampler=sampler, steps=STEPS, size=256).nfe


@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.dpmpp_sde, samplers.churn], ids=str)
def test_stochastic_ones_with_their_seed(sd, sampler):
    pipe, model, like = sd
    mine = ours(model, sampler=sampler, steps=STEPS, seed=3)
    close(through(pipe, model, hub.Scheduler(sampler, like=like, seed=3, size=256)), mine)
    with pytest.raises(ValueError, match="draws noise: Scheduler"):
        through(pipe, model, hub.Scheduler(sampler, like=like))


def test_a_plan_and_a_grid(sd, tmp_path):
    pipe, model, like = sd
    plan = samplers.dpmpp(order=2).plan(model.schedule, grids.karras(model.schedule, STEPS))
    plan.save(tmp_path / "plan.json")
    again = samplers.Plan.load(tmp_path / "plan.json")
    mine = ours(model, sampler=plan)
    close(through(pipe, model, hub.Scheduler(again, like=like)), mine)
    close(through(pipe, model, hub.Scheduler(samplers.dpmpp(order=2), like=like, grid=grids.karras)), mine)
    with pytest.raises(ValueError, match=r"this plan has 10 steps on .*, asked for 9"):
        through(pipe, model, hub.Scheduler(plan, like=like), num_inference_steps=9)


def test_image_to_image_starts_in_the_middle(sd):
    pipe, model, like = sd
    other = diffusers.StableDiffusionImg2ImgPipeline(**(pipe.components | {"scheduler": like}))
    other.set_progress_bar_config(disable=True)
    other.scheduler = hub.Scheduler(samplers.dpmpp(order=2), like=like, grid=grids.trailing)
    z = sf.noise((2, *model.shape), seed=5)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    run = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent", "strength": 0.6}
    theirs = other(["a cat"] * 2, image=z, generator=torch.Generator().manual_seed(2), **run).images
    grid = grids.trailing(model.schedule, STEPS)[4:]
    guided = sf.guide(model.given(text="a cat"), model, 5.0)
    mine = sf.sample(guided, noise, sampler=samplers.dpmpp(order=2), grid=grid, start=(z, float(grid[0])))
    close(mine, theirs)


def test_inpainting_changes_the_state_between_steps(sd):
    pipe, model, like = sd
    other = diffusers.StableDiffusionInpaintPipeline(**(pipe.components | {"scheduler": like}))
    other.set_progress_bar_config(disable=True)
    z, mask = sf.noise((2, *model.shape), seed=5), torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 6:16] = 1
    noise = sf.noise((2, *model.shape), seed=0)
    run = {"image": z, "mask_image": mask, "strength": 1.0, "masked_image_latents": z, "height": 16, "width": 16}
    run |= {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent", "latents": noise}
    other.scheduler = DDIM.from_config(DDIM.config, set_alpha_to_one=True)
    theirs = other(["a cat"] * 2, **run).images
    other.scheduler = hub.Scheduler(samplers.ddim, like=like, grid=lambda s, n: grids.leading(s, n, offset=1))
    close(other(["a cat"] * 2, **run).images, theirs)


def test_what_a_callback_does_to_the_state_is_seen(sd):
    pipe, model, like = sd
    scheduler = hub.Scheduler(samplers.dpmpp(order=2), like=like, size=256)
    theirs = through(
        pipe, model, scheduler, callback_on_step_end=lambda p, k, t, had: {"latents": 0.9 * had["latents"]}
    )
    guided = sf.guide(model.given(text="a cat"), model, 5.0)
    noise = sf.noise((2, *model.shape), seed=0)
    for step in sf.run(guided, noise, sampler=samplers.dpmpp(order=2), steps=STEPS):
        step.x = 0.9 * step.x
    close(step.x, theirs)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flows(name, tmp_path):
    pipe = {"sd3": folders.sd3, "flux": folders.flux}[name](tmp_path / name, FLOW(use_dynamic_shifting=True))
    model, noise = hub.diffusers(tmp_path / name, size=(16, 16)), sf.noise((2, 4, 8, 8), seed=0)
    pipe.scheduler = hub.Scheduler(samplers.dpmpp(order=2), like=pipe.scheduler, grid=grids.uniform)
    run = {"num_inference_steps": STEPS, "output_type": "latent", "guidance_scale": 5.0, "height": 16, "width": 16}
    if name == "flux":
        packed = torch.nn.functional.pixel_unshuffle(noise, 2).flatten(2).mT
        theirs = pipe(["a cat"] * 2, latents=packed, **run).images
        theirs = torch.nn.functional.pixel_shuffle(theirs.mT.unflatten(2, (4, 4)), 2)
        guided = model.given(text="a cat", guidance=5.0)
    else:
        theirs = pipe(["a cat"] * 2, latents=noise, **run).images
        guided = sf.guide(model.given(text="a cat"), model, 5.0)
    mine = sf.sample(guided, noise, sampler=samplers.dpmpp(order=2), steps=STEPS, grid=grids.uniform)
    close(mine, theirs)


def test_what_a_scheduler_cannot_do(sd):
    _, model, like = sd
    with pytest.raises(ValueError, match="needs the negative's answer apart"):
        hub.Scheduler(samplers.cfgpp, like=like).set_timesteps(4)
    two = hub.Scheduler(samplers.heun, like=like)
    two.set_timesteps(4)
    two.set_begin_index(2)
    x = sf.noise((1, *model.shape), seed=0)
    with pytest.raises(ValueError, match="cannot start at timestep 2"):
        two.step(x, two.timesteps[2], x)
    one = hub.Scheduler(samplers.ddim, like=like)
    with pytest.raises(ValueError, match="call set_timesteps first"):
        one.step(x, 999, x)
    one.set_timesteps(4)
    with pytest.raises(ValueError, match="it is the turn of timestep 999, got 400"):
        one.step(x, 400, x)


@pytest.mark.parametrize("kind", ["dit", *(pytest.param(k, marks=pytest.mark.slow) for k in ("unet", "sd"))])
def test_onnx_answers_the_same_for_any_number_of_rows(kind, tmp_path, sd, digits):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    if kind == "unet":
        model = digits
    elif kind == "dit":
        torch.manual_seed(0)
        net = folders.spread(nets.DiT(1, patch=4, width=16, depth=1, heads=2, conditions={"label": nets.Label(10)}))
        model = sf.Denoiser(net, schedules.Linear(), "velocity")
    else:
        model = sd[1]
    shape = model.shape or (1, 8, 8)
    names = hub.to_onnx(model, tmp_path / "net.onnx", shape=shape)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        x = sf.noise((rows, *shape), seed=0)
        told = model.given(text="a cat") if kind == "sd" else model.given(label=[3])
        values = told.told(x)
        assert names == ["x", "t", *values]
        t = torch.full((rows,), 0.4)
        with torch.no_grad():
            want = model.net(x, t, **values)
        feed = {"x": x.numpy(), "t": t.numpy()} | {k: v.detach().numpy() for k, v in values.items()}
        got = torch.as_tensor(session.run(None, feed)[0])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
        assert want.abs().max() > 0.05


def test_onnx_of_what_has_several_tensors_in_one_condition(tmp_path):
    pytest.importorskip("onnxscript")
    folders.sdxl(tmp_path / "xl", DDIM)
    with pytest.raises(TypeError, match="'text' is told in several tensors"):
        hub.to_onnx(hub.diffusers(tmp_path / "xl"), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="say the shape"):
        hub.to_onnx(sf.Denoiser(unet(), schedules.VP(), "eps"), tmp_path / "net.onnx")
