"""Controls and adapters on Stable Diffusion, SDXL and Flux, without code of theirs, beside diffusers' own."""

import pytest
import torch

import suffuse as sf
from suffuse import adapters, control, hub
from suffuse.control import Hint

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.adapters.nets import said, same, shaken, spread, weights  # noqa: E402
from tests.hub import folders  # noqa: E402

DDIM = diffusers.DDIMScheduler(**folders.SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
BUILD = {
    "sd": lambda f: folders.stable_diffusion(f, DDIM),
    "sdxl": lambda f: folders.sdxl(f, DDIM),
    "flux": lambda f: folders.flux(f, FLOW(use_dynamic_shifting=True)),
}
WAYS = {
    "sd": ("unet.conv_in", ("unet.down_blocks.0", "unet.down_blocks.1", "unet.mid_block"), True),
    "sdxl": ("unet.conv_in", ("unet.down_blocks.0", "unet.down_blocks.1", "unet.mid_block"), True),
    "flux": ("transformer.x_embedder", ("transformer.transformer_blocks.0",), False),
}
ENCODE = torch.nn.Conv2d(1, 8, 4, 4)


def encode(picture):
    return ENCODE(picture).flatten(2).mT


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    return {name: (build(root / name), hub.diffusers(root / name)) for name, build in BUILD.items()}


@pytest.mark.parametrize("method", ["controlnet", "t2i", "concatenated", "ip", "lora", "dora"])
@pytest.mark.parametrize("family", BUILD)
def test_it_attaches_silently_and_then_speaks(pipes, family, method):
    model = pipes[family][1].given(text=["a cat", "2 cats"])
    x, before = sf.noise((2, *model.shape), seed=0), weights(model.net)
    plain = said(model, x)
    picture = sf.noise((2, 1, *(2 * n for n in x.shape[2:])), seed=1).clamp(-1, 1)  # 2 pixels per latent here
    if method in ("lora", "dora"):
        new = adapters.lora(model, dora=method == "dora")
        told, silent = new, adapters.scaled
    else:
        makes = {"controlnet": control.controlnet, "t2i": control.t2i_adapter}
        if method == "ip":
            new = control.ip_adapter(model, encode, picture[:1], name="hint")
        elif method == "concatenated":
            new = control.concatenated(model, 1, name="hint", own=False)
        else:
            new = makes[method](model, 1, name="hint")
            path = new.net.controls["hint"].route
            assert (path.stem, path.steps, path.skips) == WAYS[family]
        told, silent = new.given(hint=picture), None
    assert torch.equal(said(told, x), plain)
    shaken(new, scale=0.1)
    loud = said(told, x)
    assert (loud - plain).abs().max() > 1e-3
    if silent is None:
        assert torch.equal(said(new, x), plain)
        late = new.given(hint=Hint(picture, between=(0.6, 1.0)))  # their clocks are indices and noise levels
        assert torch.equal(said(late, x, 0.59), said(model, x, 0.59)) and torch.equal(
            said(late, x, 0.61), said(told, x, 0.61)
        )
    else:
        assert torch.equal(said(silent(new, 0.0), x), plain)
    assert torch.equal(said(model, x), plain) and same(weights(model.net), before)


def test_a_controlnet_on_a_unet_is_diffusers_controlnet(pipes):
    """Equal weights, no picture's features: what the two add to Stable Diffusion is the same."""
    pipe, model = pipes["sd"]
    model = model.given(text=["a cat", "2 cats"])
    theirs = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_channels=1).eval()
    ours = shaken(control.controlnet(model, 1, name="hint"), scale=0.1)
    part = ours.net.controls["hint"]
    with torch.no_grad():
        part.enter.weight.zero_(), part.enter.bias.zero_()
        wanted = part.copy.unet.state_dict()
        theirs.load_state_dict({k: v for k, v in wanted.items() if k in theirs.state_dict()}, strict=False)
        joins = part.joins  # the state after a block comes before those inside it
        order = [("unet/conv_in", 0), ("unet/down_blocks/0", 1), ("unet/down_blocks/0", 0), ("unet/down_blocks/1", 0)]
        pairs = [
            *zip(theirs.controlnet_down_blocks, order, strict=True),
            (theirs.controlnet_mid_block, ("unet/mid_block", 0)),
        ]
        for zero, (name, i) in pairs:
            zero.load_state_dict(joins[name][i].state_dict())
    x, t = sf.noise((2, *model.shape), seed=0), torch.full((2,), 500.0)
    text = model.bound["text"]
    picture = torch.zeros(2, 1, *(2 * n for n in x.shape[2:]))
    hint = {"picture": picture, "strength": torch.full((2,), 0.7), "low": t - 1, "high": t + 1}
    with torch.no_grad():
        down, mid = theirs(x, t, text, torch.zeros(2, 1, 64, 64), conditioning_scale=0.7, return_dict=False)
        want = pipe.unet(
            x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid, return_dict=False
        )[0]
        plain = pipe.unet(x, t, text, return_dict=False)[0]
        got = ours.net(x, t, text=text, hint=hint)
    assert (want - plain).abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_what_is_written_opens_in_diffusers(pipes, form, dora, tmp_path):
    if dora and form == "kohya":
        pytest.skip("diffusers reads DoRA in its own form only")
    pytest.importorskip("peft")
    pipe, model = pipes["sd"]
    model = model.given(text=["a cat", "2 cats"])
    moved = shaken(adapters.lora(model, rank=2, alpha=3.0, dora=dora), scale=0.1)
    adapters.save_lora(moved, tmp_path / "lora.safetensors", form=form)
    x, t = sf.noise((2, *model.shape), seed=0), torch.full((2,), 500.0)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    try:
        with torch.no_grad():
            want = pipe.unet(x, t, model.bound["text"], return_dict=False)[0]
    finally:
        pipe.unload_lora_weights()
    with torch.no_grad():
        torch.testing.assert_close(moved.net(x, t, text=model.bound["text"]), want, rtol=0, atol=1e-4)
        assert (want - model.net(x, t, text=model.bound["text"])).abs().max() > 1e-2
    again = adapters.load_lora(model, tmp_path / "lora.safetensors")
    torch.testing.assert_close(said(again, x), said(moved, x), rtol=0, atol=1e-5)


def test_a_new_word_in_every_text_encoder(pipes, tmp_path):
    model = pipes["sdxl"][1]
    x = sf.noise((1, *model.shape), seed=0)
    new, rows = adapters.new_word(model, "zq", "cat")
    assert len(rows) == 2
    assert torch.equal(said(new.given(text="a zq"), x), said(model.given(text="a cat"), x))
    spread(rows, 3.0)
    told = said(new.given(text="a zq"), x)
    assert (told - said(model.given(text="a cat"), x)).abs().max() > 1e-4
    assert torch.equal(said(new.given(text="a cat"), x), said(model.given(text="a cat"), x))
    new.given(text="a zq")(x, 0.5).x0.sum().backward()
    assert all(grown.row.grad.abs().sum() > 0 for grown in rows)
    adapters.save_word(rows, "zq", tmp_path / "word.safetensors")
    again = adapters.load_word(model, tmp_path / "word.safetensors")
    assert torch.equal(said(again.given(text="a zq"), x), told)


def test_pictures_have_the_size_of_the_data_not_of_the_latents(pipes):
    model = pipes["sd"][1].given(text="a cat")
    steered = control.controlnet(model, 1)
    x = sf.noise((1, *model.shape), seed=0)
    with pytest.raises(
        ValueError, match=r"control must have the size \(16, 16\), 2 points for each of x's \(8, 8\); got \(8"
    ):
        said(steered.given(control=torch.zeros(1, 1, 8, 8)), x)
