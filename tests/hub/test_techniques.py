"""Techniques of suffuse on every family, unchanged: taps, perturbed attention, panorama, posterior sampling."""

import copy
import re
from pathlib import Path

import pytest
import torch

import suffuse as sf
from suffuse import grids, hub, joint, nets, operators, samplers
from suffuse.inverse.measured import near

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.hub import folders  # noqa: E402
from tests.hub.test_families import DDIM, FLOW  # noqa: E402
from tests.hub.test_parity import close  # noqa: E402

BUILD = {
    "sd": lambda f: folders.stable_diffusion(f, DDIM),
    "sdxl": lambda f: folders.sdxl(f, DDIM),
    "sd3": lambda f: folders.sd3(f, FLOW(shift=3.0)),
    "flux": lambda f: folders.flux(f, FLOW(use_dynamic_shifting=True)),
    "dit": lambda f: folders.dit(f, DDIM),
    "pixart": lambda f: folders.pixart(f, DDIM),
}
FOUR = ["sd", "sdxl", "sd3", "flux"]
STEPS = 6


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    torch.set_num_threads(1)
    made, root = {}, tmp_path_factory.mktemp("techniques")

    def get(name):
        if name not in made:
            pipe = BUILD[name](root / name)
            made[name] = pipe, hub.diffusers(root / name, size=(16, 16))
        return made[name]

    return get


def told(model, text="a cat"):
    return model.given(**({"label": [3]} if "label" in model.conditions else {"text": text}))


# Taps


class Count(torch.overrides.TorchFunctionMode):
    """How often torch is asked for attention."""

    n = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", BUILD)
def test_every_attention_can_be_read_and_doing_it_by_hand_changes_nothing(families, name):
    model = told(families(name)[1])
    x, seen = sf.noise((2, *model.shape), seed=0), []

    def look(site, q, k, v, mask):
        def keep(probabilities):
            seen.append((site, probabilities))
            return probabilities

        return nets.attend(q, k, v, mask, edit=keep)

    with torch.no_grad():
        with Count() as calls:
            before = model(x, 0.6).x0
        with nets.tapped(model.net, look) as sites:
            during = model(x, 0.6).x0
        assert torch.equal(model(x, 0.6).x0, before)
    close(during, before)
    assert len(seen) == calls.n > 1
    assert sorted(site.name for site, _ in seen) == sorted(site.name for site in sites)  # each once, none missed
    for site, p in seen:
        torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
        assert p.shape[-1] == p.shape[-2] or site.kind == "cross", site.name


@pytest.mark.parametrize("name", BUILD)
def test_a_tap_that_breaks_leaves_no_trace(families, name):
    model = told(families(name)[1])
    x = sf.noise((1, *model.shape), seed=0)

    def broken(site, q, k, v, mask):
        raise RuntimeError("broken tap")

    with torch.no_grad():
        before = model(x, 0.6).x0
        with pytest.raises(RuntimeError, match="broken tap"), nets.tapped(model.net, broken):
            model(x, 0.6)
        assert torch.overrides._len_torch_function_stack() == 0
        assert torch.equal(model(x, 0.6).x0, before)


def test_prompts_are_what_cross_attention_attends_to(families):
    """Silencing it makes two prompts the same; silencing self-attention does not."""
    model = families("sd")[1]
    x = sf.noise((1, *model.shape), seed=0)
    for kind, same in (("cross", True), ("self", False)):

        def quiet(site, q, k, v, mask, kind=kind):
            return torch.zeros_like(q) if site.kind == kind else nets.attend(q, k, v, mask)

        with torch.no_grad(), nets.tapped(model.net, quiet):
            answers = [model.given(text=text)(x, 0.6).x0 for text in ("a cat", "2 dogs")]
        assert torch.equal(*answers) == same


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_perturbed_attention_is_that_of_their_pipeline(families, name):
    pipe, model = families(name)
    kind = {"sd": diffusers.StableDiffusionPAGPipeline, "sdxl": diffusers.StableDiffusionXLPAGPipeline}[name]
    theirs = kind(**pipe.components, pag_applied_layers=["mid"])
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DDIM
    noise = sf.noise((2, *model.shape), seed=0)
    run = {"latents": noise, "num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "latent"}
    want = theirs(["a cat"] * 2, pag_scale=3.0, **run).images
    plain = theirs(["a cat"] * 2, pag_scale=0.0, **run).images
    guided = sf.guidance.pag(told(model), 4.0, where=lambda site: "mid_block" in site.name)
    grid = grids.leading(model.schedule, STEPS, offset=1, end=1 / 1000)
    close(sf.sample(guided, noise, sampler=samplers.ddim, grid=grid), want)
    assert (want - plain).abs().max() > 1e-2


# Joint denoising, posterior sampling, autoguidance: the same lines for all


@pytest.mark.parametrize("name", FOUR)
def test_a_panorama_has_no_place_of_its_own(families, name):
    """On a ring, noise turned by a stride gives the panorama turned; on one window it is the picture itself."""
    model = told(families(name)[1])
    _, height, width = model.shape
    ring = operators.Crops(size=(height, width), stride=(height, 4), canvas=(height, 2 * width), wrap=True)
    noise = sf.noise((1, model.shape[0], height, 2 * width), seed=0)
    wide = joint.average(model, ring)
    run = {"sampler": samplers.dpmpp(order=2), "steps": STEPS}
    out = sf.sample(wide, noise, **run)
    close(sf.sample(wide, noise.roll(4, -1), **run), out.roll(4, -1), 1e-4 * max(1.0, out.abs().max().item()))
    assert out.isfinite().all() and (out - out.roll(4, -1)).abs().max() > 0.1
    one = operators.Crops(size=(height, width), stride=(height, width), canvas=(height, width))
    small = noise[..., :width]
    close(sf.sample(joint.average(model, one), small, **run), sf.sample(model, small, **run))


@pytest.mark.parametrize("name", FOUR)
def test_posterior_sampling_follows_what_was_measured(families, name):
    model = told(families(name)[1])
    noise = sf.noise((2, *model.shape), seed=0)
    A = operators.Downsample(2, size=tuple(model.shape[1:]))
    measured = A(sf.sample(model, sf.noise((1, *model.shape), seed=9), steps=STEPS))
    run = {"sampler": samplers.ddim(eta=1.0), "steps": 10, "seed": 1}

    def miss(zeta):
        x = sf.sample(sf.inverse.dps(model, A, measured, zeta=zeta), noise, **run)
        return (A(x) - measured).flatten(1).norm(dim=1)

    alone, pushed = miss(0.0), miss(1.0)
    assert (pushed < 0.9 * alone).all(), (pushed, alone)
    grid = grids.uniform(model.schedule, 10)
    grid[0] = near(model.schedule, grid[0])  # pure noise is asked where alpha/sigma = 1/1000, to have a slope
    none = sf.inverse.dps(model, A, measured, zeta=0.0)
    unpushed = {"sampler": samplers.ddim, "grid": grid}
    close(sf.sample(none, noise, **unpushed), sf.sample(model, noise, **unpushed))


@pytest.mark.parametrize("name", FOUR)
def test_autoguidance_by_a_weaker_model(families, name):
    model = told(families(name)[1])
    weak = copy.copy(model)
    weak.net = folders.spread(copy.deepcopy(model.net), 0.1)
    x = sf.noise((2, *model.shape), seed=0)
    guided = sf.guide(model, weak, 2.5)
    with torch.no_grad():
        strong, weaker, p = model(x, 0.6), weak(x, 0.6), guided(x, 0.6)
    close(p.eps, weaker.eps + 2.5 * (strong.eps - weaker.eps), 1e-4 * max(1.0, p.eps.abs().max().item()))
    run = {"sampler": samplers.dpmpp(order=2), "steps": STEPS}
    plain, out = sf.sample(model, x, **run), sf.sample(guided, x, **run)
    assert out.isfinite().all() and (out - plain).abs().max() > 0.01
    assert torch.equal(sf.sample(sf.guide(model, weak, 1.0), x, **run), plain)


def test_no_family_is_named_outside_the_hub():
    root = Path(sf.__file__).parent
    named = re.compile(
        r"import diffusers|from diffusers|import transformers|from transformers|\bFlux\b|\bSD3\b|StableDiff"
    )
    code = {p.relative_to(root): p.read_text() for p in root.rglob("*.py")}
    inside = [str(p) for p, text in code.items() if named.search(text) and p.parts[0] == "hub"]
    for package in ("guidance", "joint", "inverse", "operators", "samplers", "losses", "editing", "nets", "denoise"):
        found = [
            str(p)
            for p, text in code.items()
            if p.parts[0] == package and named.search(re.sub('""".*?"""', "", text, flags=re.S))
        ]
        assert not found, found
    assert len(inside) > 3
