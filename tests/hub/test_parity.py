"""The same weights, noise and prompt through diffusers' own pipelines and through suffuse: the same images."""

import pytest
import torch

import suffuse as sf
from suffuse import grids, hub, samplers

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.hub import folders  # noqa: E402

STEPS, W = 10, 7.5
V = {"prediction_type": "v_prediction"}
PLAIN = {"clip_sample": False}


def close(mine, theirs, tolerance=1e-4):
    assert mine.dtype == theirs.dtype == torch.float32
    # latents have unit variance; a random network's may grow to 8 times that, and what is rounded grows with them
    difference = (mine - theirs).abs().max().item() / max(1.0, theirs.std().item())
    assert difference <= tolerance, f"differs by {difference:.2e}"


def last_states(pipe):
    """The states their scheduler makes, before the pipeline clamps the last one to an image."""
    states, step = [], pipe.scheduler.step

    def recording(*args, **options):
        out = step(*args, **options)
        states.append(out[0])
        return out

    pipe.scheduler.step = recording
    return states


def own_times(pipe, steps=STEPS):
    """Times of their own timesteps, and the end."""
    pipe.scheduler.set_timesteps(steps)
    return [(round(float(i)) + 1) / 1000 for i in pipe.scheduler.timesteps] + [0.0]


BETAS = {
    "linear": {},
    "scaled_linear": folders.SD_BETAS,
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": torch.linspace(2e-4, 0.015, 1000).tolist()},
}


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_pixel_model_with_ddim(tmp_path, betas, predicts):
    scheduler = diffusers.DDIMScheduler(**BETAS[betas], **PLAIN, prediction_type=predicts)
    pipe = folders.ddpm(tmp_path, scheduler)
    states = last_states(pipe)
    theirs = pipe(2, torch.Generator().manual_seed(3), STEPS, output_type="pt").images
    model = hub.diffusers(tmp_path)
    noise = torch.randn((2, *model.shape), generator=torch.Generator().manual_seed(3))
    mine = sf.sample(model, noise, sampler=samplers.ddim, grid=grids.leading(model.schedule, STEPS))
    close((mine / 2 + 0.5).clamp(0, 1), theirs)
    close(mine, states[-1])


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_pixel_model_with_dpmpp(tmp_path, predicts):
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type=predicts, timestep_spacing="leading")
    pipe = folders.ddpm(tmp_path, scheduler)
    states = last_states(pipe)
    theirs = pipe(2, torch.Generator().manual_seed(3), STEPS, output_type="pt").images
    model = hub.diffusers(tmp_path)
    noise = torch.randn((2, *model.shape), generator=torch.Generator().manual_seed(3))
    grid = hub.times(pipe.scheduler, model.schedule)
    mine = sf.sample(model, noise, sampler=samplers.dpmpp(order=2, weights="paper"), grid=grid)
    close((mine / 2 + 0.5).clamp(0, 1), theirs)
    close(mine, states[-1])


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_their_pixel_pipeline_never_scales_for_euler(tmp_path, predicts, monkeypatch):
    """Fault of the peer: DDPMPipeline asks neither init_noise_sigma nor scale_model_input, which Euler needs."""
    from diffusers.pipelines.ddpm import pipeline_ddpm

    pipe = folders.ddpm(
        tmp_path, diffusers.EulerDiscreteScheduler(prediction_type=predicts, timestep_spacing="leading")
    )
    model, scheduler, draw = hub.diffusers(tmp_path), pipe.scheduler, pipeline_ddpm.randn_tensor
    noise = torch.randn((2, *model.shape), generator=torch.Generator().manual_seed(3))
    run = {"batch_size": 2, "num_inference_steps": STEPS, "output_type": "pt"}
    default = pipe(generator=torch.Generator().manual_seed(3), **run).images
    pipe.unet.register_forward_pre_hook(lambda _, args: (scheduler.scale_model_input(*args[:2]), *args[1:]))
    monkeypatch.setattr(pipeline_ddpm, "randn_tensor", lambda *a, **o: scheduler.init_noise_sigma * draw(*a, **o))
    states = last_states(pipe)
    theirs = pipe(generator=torch.Generator().manual_seed(3), **run).images
    mine = sf.sample(model, noise, sampler=samplers.ddim, grid=hub.times(scheduler, model.schedule))
    close(mine, states[-1])
    close((mine / 2 + 0.5).clamp(0, 1), theirs)
    assert (default - theirs).abs().max() > 0.1


class TheirNoise:
    """The noise their scheduler draws, in the order it draws it."""

    turn = 0

    def __init__(self, shape, generator):
        self.shape, self.generator = shape, generator

    def increment(self, a, b):
        return torch.randn(self.shape, generator=self.generator)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_pixel_model_with_ancestral_steps_and_clipping(tmp_path, predicts):
    """DDPMPipeline as it comes: clip_sample, and noise at every step but the last."""
    pipe = folders.ddpm(tmp_path, diffusers.DDPMScheduler(prediction_type=predicts))
    states = last_states(pipe)
    theirs = pipe(2, torch.Generator().manual_seed(3), STEPS, output_type="pt").images
    model = hub.clip(hub.diffusers(tmp_path))
    drawn = torch.Generator().manual_seed(3)
    noise = torch.randn(states[-1].shape, generator=drawn)
    plan = samplers.ddpm.plan(model.schedule, grids.leading(model.schedule, STEPS))
    with torch.no_grad():
        mine = plan(model, noise, TheirNoise(noise.shape, drawn))
    close(mine, states[-1])
    close((mine / 2 + 0.5).clamp(0, 1), theirs)


def test_their_default_clipping_with_ddim_is_inconsistent_and_their_option_is_ours(tmp_path):
    """Fault of the peer: clip_sample clamps x0 and keeps the eps of the unclamped one, so that x is no longer
    alpha x0 + sigma eps. With use_clipped_model_output=True it rebuilds eps, and is what `clip` does.
    """
    pipe = folders.ddpm(tmp_path, diffusers.DDIMScheduler(), diffusers.DDIMPipeline)
    model = hub.clip(hub.diffusers(tmp_path))
    noise = torch.randn((2, *model.parts[0].shape), generator=torch.Generator().manual_seed(3))
    mine = sf.sample(model, noise, sampler=samplers.ddim, grid=grids.leading(model.schedule, STEPS))
    run = {"batch_size": 2, "num_inference_steps": STEPS, "output_type": "pt"}
    mended = pipe(generator=torch.Generator().manual_seed(3), use_clipped_model_output=True, **run).images
    default = pipe(generator=torch.Generator().manual_seed(3), **run).images
    close((mine / 2 + 0.5).clamp(0, 1), mended)
    assert (default - mended).abs().max() > 0.01
    scheduler, x, eps = diffusers.DDIMScheduler(), torch.tensor(3.0), torch.tensor(0.5)
    scheduler.set_timesteps(STEPS)
    step = scheduler.step(eps, 500, x)
    (a, s), (b, r) = model.schedule(0.501), model.schedule(0.401)
    used = (step.prev_sample - b * step.pred_original_sample) / r
    torch.testing.assert_close(used, eps)
    assert (a * step.pred_original_sample + s * used - x).abs() > 1


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_stable_diffusion_with_ddim(tmp_path, predicts):
    scheduler = diffusers.DDIMScheduler(
        **folders.SD_BETAS, **PLAIN, set_alpha_to_one=False, steps_offset=1, prediction_type=predicts
    )
    pipe = folders.stable_diffusion(tmp_path, scheduler, old_tokenizer=predicts == "epsilon")
    model = hub.diffusers(tmp_path)
    noise = sf.noise((2, *model.shape), seed=0)
    prompts = {"prompt": ["a cat", "2 cats"], "negative_prompt": ["ugly"] * 2}
    options = {"latents": noise, "num_inference_steps": STEPS}
    guided = sf.guide(model.given(text=prompts["prompt"]), model.given(text="ugly"), W)
    grid = grids.leading(model.schedule, STEPS, offset=1, end=1 / 1000)
    mine = sf.sample(guided, noise, sampler=samplers.ddim, grid=grid)
    theirs = pipe(**prompts, guidance_scale=W, **options, output_type="latent").images
    close(mine, theirs)
    with torch.no_grad():
        image = (model.codec.decode(mine) / 2 + 0.5).clamp(0, 1)
    close(image, pipe(**prompts, guidance_scale=W, **options, output_type="pt").images)
    unguided = pipe(prompts["prompt"], guidance_scale=1.0, **options, output_type="latent").images
    assert (theirs - unguided).abs().max() > 0.5  # the prompts say something
    close(sf.sample(model.given(text=prompts["prompt"]), noise, sampler=samplers.ddim, grid=grid), unguided)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        (diffusers.EulerDiscreteScheduler, samplers.ddim),
        (diffusers.DPMSolverMultistepScheduler, samplers.dpmpp(order=2, weights="paper")),
    ],
)
def test_stable_diffusion_on_their_own_times(tmp_path, kind, sampler, predicts):
    scheduler = kind(**folders.SD_BETAS, prediction_type=predicts, timestep_spacing="leading", steps_offset=1)
    pipe = folders.stable_diffusion(tmp_path, scheduler)
    model = hub.diffusers(tmp_path)
    noise = sf.noise((2, *model.shape), seed=0)
    mine = sf.sample(sf.guide(model.given(text="a cat"), model, W), noise, sampler=sampler, grid=own_times(pipe))
    options = {"latents": noise, "num_inference_steps": STEPS, "guidance_scale": W}
    theirs = pipe(["a cat"] * 2, **options, output_type="latent").images
    close(mine, theirs)
    with torch.no_grad():
        image = (model.codec.decode(mine) / 2 + 0.5).clamp(0, 1)
    close(image, pipe(["a cat"] * 2, **options, output_type="pt").images)


def _zero_snr(folder, steps):
    scheduler = diffusers.DDIMScheduler(
        **folders.SD_BETAS, **V, **PLAIN, rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1
    )
    pipe = folders.stable_diffusion(folder, scheduler)
    model = hub.diffusers(folder)
    assert model.schedule(1.0) == (0.0, 1.0)
    noise = sf.noise((2, *model.shape), seed=0)
    guided = sf.guide(model.given(text="a cat"), model, W)
    mine = sf.sample(guided, noise, sampler=samplers.ddim, grid=grids.trailing(model.schedule, steps))
    return pipe, mine, {"latents": noise, "num_inference_steps": steps, "guidance_scale": W, "output_type": "latent"}


def test_zero_terminal_snr_with_trailing_times(tmp_path):
    pipe, mine, options = _zero_snr(tmp_path, STEPS)
    theirs = pipe(["a cat"] * 2, **options).images
    close(mine, theirs)


def test_their_trailing_ddim_steps_past_its_next_time_where_n_does_not_divide_t(tmp_path):
    """Fault of the peer: with 7 trailing steps their times are 142 and 143 apart, and every step goes 142 down."""
    pipe, mine, options = _zero_snr(tmp_path, 7)
    theirs = pipe(["a cat"] * 2, **options).images
    assert (mine - theirs).abs().max() > 1e-3
    times = pipe.scheduler.timesteps.tolist()
    gaps = [a - b for a, b in zip(times, times[1:], strict=False)]
    assert set(gaps) == {142, 143}
    table, step = pipe.scheduler.alphas_cumprod, pipe.scheduler.step

    def mended(output, t, x, **options):
        """Their step, where it looks for the alpha of t - 142 finding that of the next time, or of clean data."""
        after = times.index(int(t)) + 1
        pipe.scheduler.alphas_cumprod = table.clone()
        pipe.scheduler.alphas_cumprod[int(t) - 142] = table[times[after]] if after < 7 else 1.0
        return step(output, t, x, **options)

    pipe.scheduler.step = mended
    close(mine, pipe(["a cat"] * 2, **options).images)
