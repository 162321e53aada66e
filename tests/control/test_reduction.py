"""Every control on every network: silent at first, silent without a picture, and the base as it was."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import suffuse as sf
from suffuse import adapters, control
from suffuse.adapters.places import layers
from suffuse.control import Hint
from suffuse.nets import DiT, UNet
from tests.adapters.nets import MAKE, OURS, model, said, same, shaken, spread, weights, x_of

KINDS = list(MAKE)
ENCODE = nn.Conv2d(1, 8, 4, 4)


def encode(picture):
    return ENCODE(picture).flatten(2).mT


def attach(base, method, name="hint"):
    torch.manual_seed(1)
    if method == "ip":
        return control.ip_adapter(base, encode, torch.zeros(1, 1, 8, 8), name=name)
    options = {"own": False} if method == "concatenated" else {}
    makes = {"controlnet": control.controlnet, "t2i": control.t2i_adapter, "concatenated": control.concatenated}
    return makes[method](base, 1, name=name, **options)


CASES = [(k, m) for k in KINDS for m in ("controlnet", "t2i", "concatenated")] + [(k, "ip") for k in OURS]
PICTURE = sf.noise((2, 1, 8, 8), seed=9).clamp(-1, 1)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_fresh_one_is_the_base_and_so_is_a_trained_one_that_is_told_nothing(kind, method):
    base = model(kind)
    x, before = x_of(base), weights(base.net)
    plain = said(base, x)
    steered = attach(base, method)
    assert torch.equal(said(steered.given(hint=PICTURE), x), plain)
    shaken(steered)
    told = said(steered.given(hint=PICTURE), x)
    assert (told - plain).abs().max() > 1e-3
    assert torch.equal(said(steered, x), plain)
    assert torch.equal(said(steered.given(hint=Hint(PICTURE, 0.0)), x), plain)
    assert torch.equal(said(base, x), plain) and same(weights(base.net), before)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_rows_have_pictures_strengths_and_times_of_their_own(kind, method):
    base = model(kind)
    x, steered = x_of(base), shaken(attach(base, method))
    full, plain = said(steered.given(hint=PICTURE), x), said(base, x)
    one = PICTURE.clone()
    one[0] = torch.nan
    if method != "ip":  # which is told tokens
        mixed = said(steered.given(hint=one), x)
        assert torch.allclose(mixed[0], plain[0], atol=1e-5) and torch.allclose(mixed[1], full[1], atol=1e-5)
    rows = said(steered.given(hint=Hint(PICTURE, torch.tensor([1.0, 0.0]))), x)
    assert torch.allclose(rows[0], full[0], atol=1e-5) and torch.allclose(rows[1], plain[1], atol=1e-5)
    alone = said(steered.given(hint=PICTURE).rows(slice(1, 2)), x[1:])
    torch.testing.assert_close(alone, full[1:], rtol=0, atol=1e-5 * max(1.0, full.abs().max().item()))
    late = steered.given(hint=Hint(PICTURE, between=(0.5, 0.8)))
    assert torch.equal(said(late, x, 0.5), full) and torch.equal(said(late, x, 0.49), said(base, x, 0.49))
    assert torch.equal(said(late, x, 0.9), said(base, x, 0.9))
    times = torch.tensor([0.4, 0.6])
    both = said(late, x, times)
    assert torch.allclose(both[0], said(base, x, times)[0], atol=1e-5)
    assert torch.allclose(both[1], said(steered.given(hint=PICTURE), x, times)[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "dit", "mmdit", "skipping"])
def test_several_at_once_in_any_order(kind, tmp_path):
    base = model(kind)
    x = x_of(base)
    files = {}
    for name, method, seed in (("a", "controlnet", 1), ("b", "t2i", 2)):
        files[name] = tmp_path / name
        control.save_control(shaken(attach(base, method, name), seed), files[name])
    ab, ba = (control.load_control(control.load_control(base, files[p]), files[q]) for p, q in (("a", "b"), ("b", "a")))
    told = {"a": PICTURE, "b": Hint(PICTURE.flip(3), 0.5)}
    says = said(ab.given(**told), x)
    near = {"rtol": 0, "atol": 1e-5 * max(1.0, says.abs().max().item())}
    torch.testing.assert_close(says, said(ba.given(**told), x), **near)
    only = {name: said(control.load_control(base, files[name]).given(**{name: told[name]}), x) for name in files}
    for name in files:
        torch.testing.assert_close(said(ab.given(**{name: told[name]}), x), only[name], **near)
        assert (says - only[name]).abs().max() > 1e-3


def test_a_unets_first_half_goes_on_without_its_control_and_a_chains_does_not():
    for kind, times, unchanged in (("unet", 1, True), ("unet", 4, True), ("dit", 1, False)):
        base = model(kind)
        x, steered = x_of(base).repeat(1, 1, times, times), shaken(attach(base, "controlnet"))
        hint = PICTURE.repeat(1, 1, times, times)
        path = steered.net.controls["hint"].route
        seen = []
        step = steered.net.net.get_submodule(path.steps[1])
        handle = step.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.clone()))
        said(steered, x), said(steered.given(hint=hint), x)
        handle.remove()
        assert torch.equal(*seen) == unchanged


@pytest.mark.parametrize("kind", OURS)
def test_guidance_asks_with_and_without_a_picture_in_one_batch(kind):
    base = model(kind)
    x, steered = x_of(base), shaken(attach(base, "controlnet"))
    pos, neg = steered.given(hint=PICTURE), steered
    with torch.no_grad():
        guided = sf.guide(pos, neg, 3.0)(x, 0.5).x0
    torch.testing.assert_close(guided, 3 * said(pos, x) - 2 * said(base, x), rtol=0, atol=1e-4)


def test_new_input_channels_are_those_of_a_network_that_was_built_with_them():
    for cls, options in ((UNet, {"width": 8, "multipliers": (1, 2), "blocks": 1}), (DiT, {"width": 16, "depth": 2})):
        native = spread(cls(3, conditions={"hint": sf.nets.Spatial(1)}, **options)).eval()
        plain = cls(3, **options).eval()
        stem = native.stem.weight
        plain.load_state_dict({**native.state_dict(), "stem.weight": stem[:, :3]})
        base = sf.Denoiser(plain, sf.schedules.Linear(), shape=(3, 8, 8))
        for own in (True, False):
            steered = control.concatenated(base, 1, name="hint", own=own)
            with torch.no_grad():
                steered.net.controls["hint"].weights.weight.copy_(stem[:, 3:])
            x = x_of(base)
            want = said(sf.Denoiser(native, sf.schedules.Linear()).given(hint=PICTURE), x)
            torch.testing.assert_close(said(steered.given(hint=PICTURE), x), want, rtol=0, atol=1e-5)


def test_equal_tokens_are_seen_alike_wherever_one_looks():
    """Attention over tokens that are all the same is that token's value, whatever the keys are."""
    base = model("dit")
    torch.manual_seed(0)
    steered = shaken(
        control.ip_adapter(base, lambda p: p.flatten(1)[:, None].expand(-1, 5, -1), torch.zeros(1, 1, 2, 2))
    )
    picture, x = torch.randn(2, 1, 2, 2).clamp(-1, 1), x_of(base)
    says = said(steered.given(image=picture), x)
    for name, module in steered.net.named_modules():
        if name.endswith("attention.attention") and hasattr(module, "k"):
            nn.init.normal_(module.k.weight)
    torch.testing.assert_close(said(steered.given(image=picture), x), says, rtol=0, atol=1e-5)
    for module in steered.net.modules():
        if hasattr(module, "k") and hasattr(module, "v"):
            nn.init.normal_(module.v.weight)
    assert (said(steered.given(image=picture), x) - says).abs().max() > 1e-2


def test_two_pictures_as_prompts_are_both_seen():
    base = model("unet")
    x = x_of(base)
    two = shaken(attach(shaken(attach(base, "ip", "a")), "ip", "b"), 7)
    both, a, b, none = (
        said(two.given(**told), x) for told in ({"a": PICTURE, "b": PICTURE}, {"a": PICTURE}, {"b": PICTURE}, {})
    )
    assert torch.equal(none, said(base, x))
    assert min((both - a).abs().max(), (both - b).abs().max(), (a - b).abs().max()) > 1e-3


def test_a_lora_beside_a_control_and_a_control_beside_a_lora():
    base = model("dit")
    x = x_of(base)
    steered = shaken(attach(base, "controlnet"))
    lora = adapters.lora(steered, r"^net\..*attention")
    assert torch.equal(said(lora.given(hint=PICTURE), x), said(steered.given(hint=PICTURE), x))
    assert all(name.startswith("net/") for name, _ in adapters.Learned(lora).named_parameters())
    other = attach(shaken(adapters.lora(base)), "controlnet")
    assert torch.equal(said(other.given(hint=PICTURE), x), said(other, x))
    assert all(name.startswith("controls/hint/") for name, _ in adapters.Learned(other).named_parameters())


@pytest.mark.parametrize("kind", OURS)
def test_a_lora_of_the_base_is_one_of_the_controlled_base(kind, tmp_path):
    base, file = model(kind), tmp_path / "style.safetensors"
    x, steered = x_of(base), shaken(attach(base, "controlnet"))
    assert not any(name.startswith("controls.") for name in layers(steered.net))
    moved = shaken(adapters.lora(base))
    adapters.save_lora(moved, file)
    torch.testing.assert_close(said(adapters.load_lora(steered, file), x), said(moved, x), rtol=0, atol=1e-5)
    adapters.save_lora(shaken(adapters.lora(steered)), tmp_path / "again.safetensors")
    ours, theirs = (load_file(path) for path in (file, tmp_path / "again.safetensors"))
    assert same(ours, theirs)


@pytest.mark.parametrize("method", ["controlnet", "t2i", "concatenated", "own", "ip"])
def test_a_file_holds_the_control_and_not_what_is_attached_beside_it(method, tmp_path):
    base = model("dit")
    fresh = control.concatenated(base, 1, name="hint") if method == "own" else attach(base, method)
    steered = shaken(fresh)
    control.save_control(steered, tmp_path / "before")
    beside, _ = adapters.new_word(shaken(adapters.lora(steered)), "[v]", "red")
    control.save_control(beside, tmp_path / "after")
    files = [tmp_path / when / "control.safetensors" for when in ("before", "after")]
    assert same(*map(load_file, files))
    more = {"encode": encode, "example": torch.zeros(1, 1, 8, 8)} if method == "ip" else {}
    again = control.load_control(base, tmp_path / "after", **more)
    x = x_of(base)
    says = [said(one.given(hint=PICTURE), x) for one in (again, steered)]
    torch.testing.assert_close(*says, rtol=0, atol=1e-5 * says[1].abs().max().item())


@pytest.mark.parametrize("kind", OURS)
def test_a_new_word_is_heard_by_the_base_and_by_its_control(kind, tmp_path):
    base = model(kind)
    x, steered = x_of(base), shaken(attach(base, "controlnet"))
    new, rows = adapters.new_word(steered, "[v]", "square")
    assert len(rows) == 1 and [p.shape for p in new.net.parameters() if p.requires_grad] == [rows[0].row.shape]
    told, near = {"text": "a red square", "hint": PICTURE}, {"rtol": 0, "atol": 1e-5}
    says = said(new.given(**told | {"text": "a red [v]"}), x)
    torch.testing.assert_close(says, said(steered.given(**told), x), **near)
    spread(rows, 3.0)
    two, _ = adapters.new_word(new, "[w]", "[v]")
    plain, says = adapters.fixed(two), said(new.given(**told | {"text": "a red [v]"}), x)
    assert (says - said(steered.given(**told), x)).abs().max() > 1e-3
    torch.testing.assert_close(said(plain.given(**told | {"text": "a red [w]"}), x), says, **near)
    assert not any(name.endswith((".row", ".old.weight")) for name in plain.net.state_dict())


def test_a_control_learns_what_its_picture_says_and_the_base_stays():
    """Data that is its own picture: told it, an answer can be exact; the base, which is not told, cannot know it."""
    base = sf.Denoiser(spread(UNet(1, 8, (1, 2), 1, (), 2), 0.1).eval(), sf.schedules.Linear(), shape=(1, 8, 8))
    before = weights(base.net)
    torch.manual_seed(0)
    steered = control.controlnet(base, 1, name="hint")
    x0 = (torch.rand(64, 1, 8, 8) < 0.5).float() * 2 - 1
    data = {"x": x0, "hint": x0}
    learned = adapters.Learned(steered)

    def loss(_, batch):
        return sf.losses.denoising(steered, batch)

    torch.manual_seed(1)
    with torch.no_grad():
        first = loss(None, data).mean().item()
    sf.fit(loss, data, learned, steps=120, batch_size=32, lr=5e-3, ema=None, progress=False)
    torch.manual_seed(1)
    with torch.no_grad():
        last = loss(None, data).mean().item()
        torch.manual_seed(1)
        misled = loss(None, data | {"hint": x0.roll(1, 0)}).mean().item()
    assert last < 0.6 * first and last < 0.8 * misled
    assert same(weights(base.net), before)
