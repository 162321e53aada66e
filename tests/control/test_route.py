"""The way of x through a network is found by running it: stem, first half, and whether there are skips."""

import pytest
import torch

import suffuse as sf
from suffuse import control
from suffuse.nets import DiT, Label, MMDiT, Spatial, Tokens, UNet
from tests.adapters.nets import model, said, shaken, spread

TOLD = {"label": Label(3), "text": Tokens(4, vocab=9, layers=2), "map": Spatial(2, optional=True)}
WAYS = {
    "unet": ("stem", ("down.0", "down.1", "down.2", "middle.0", "middle.1"), True),
    "dit": ("stem", ("blocks.0", "blocks.1"), False),
    "mmdit": ("stem", ("blocks.0", "blocks.1"), False),
    "skipping": ("enter", ("fine", "down", "mid", "up"), True),
    "chain": ("body.0", ("body.1", "body.2"), False),
}


@pytest.mark.parametrize("kind", WAYS)
def test_the_first_half_is_found(kind):
    path = control.controlnet(model(kind)).net.controls["control"].route
    assert (path.stem, path.steps, path.skips) == WAYS[kind]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("cls", [UNet, DiT, MMDiT])
def test_in_any_dimension_and_told_anything(cls, dims):
    size = {1: (8,), 2: (8, 12), 3: (4, 8, 4)}[dims]
    options = (
        {"width": 8, "multipliers": (1, 2), "blocks": 1, "heads": 2}
        if cls is UNet
        else {"width": 12, "depth": 3, "heads": 2}
    )
    torch.manual_seed(0)
    net = spread(cls(2, dims=dims, conditions=TOLD, **options)).eval()
    base = sf.Denoiser(net, sf.schedules.Linear(), shape=(2, *size))
    x, picture = sf.noise((2, 2, *size), seed=0), sf.noise((2, 1, *size), seed=1).clamp(-1, 1)
    for make in (control.controlnet, control.t2i_adapter, control.concatenated):
        steered = make(base, 1, name="hint", **({"own": False} if make is control.concatenated else {}))
        assert steered.net.controls["hint"].route.stem == "stem"
        assert torch.equal(said(steered.given(hint=picture), x), said(base, x))
        shaken(steered)
        told = said(steered.given(hint=picture), x)
        assert (told - said(base, x)).abs().max() > 1e-3
        moved = picture.clone()
        moved[0, 0].flatten()[0] = -moved[0, 0].flatten()[0]
        there = said(steered.given(hint=moved), x)
        assert not torch.equal(there[0], told[0]) and torch.equal(there[1], told[1])


def test_a_picture_acts_where_it_is():
    """Convolutions only: far from a change in the picture nothing changes, and the change is around it."""
    base = model("chain", (3, 24, 24))
    steered = shaken(control.controlnet(base, 1))
    x, picture = sf.noise((1, 3, 24, 24), seed=0), torch.zeros(1, 1, 24, 24)
    dot = picture.clone()
    dot[0, 0, 4, 18] = 1.0
    change = (said(steered.given(control=dot), x) - said(steered.given(control=picture), x)).abs().amax((0, 1))
    rows, columns = change.nonzero().unbind(1)
    assert len(rows) and (rows - 4).abs().max() <= 7 and (columns - 18).abs().max() <= 7
    assert change[4, 18] > 0


def test_one_network_takes_other_sizes_than_the_example():
    for kind in ("unet", "dit", "mmdit", "skipping"):
        steered = shaken(control.controlnet(model(kind), 1))
        x, picture = sf.noise((2, 3, 16, 12), seed=0), torch.zeros(2, 1, 16, 12)
        assert (said(steered.given(control=picture), x) - said(steered, x)).abs().max() > 1e-4


def test_what_cannot_be_steered_is_said():
    base = model("dit")
    net = torch.nn.Identity()
    with pytest.raises(ValueError, match="Flat has no steps"):
        Flat = type("Flat", (torch.nn.Module,), {"forward": lambda self, x, t: x * 2})
        control.controlnet(sf.Denoiser(Flat(), sf.schedules.Linear(), shape=(3, 8, 8)))
    with pytest.raises(TypeError, match="before it is guided"):
        control.controlnet(sf.guide(base, base, 2.0))
    with pytest.raises(TypeError, match="Denoiser around a module"):
        control.controlnet(net)
    with pytest.raises(ValueError, match="must be a new identifier, got 'text'; the conditions are text"):
        control.controlnet(base, name="text")
    with pytest.raises(ValueError, match="pass an example"):
        control.controlnet(sf.Denoiser(base.net, sf.schedules.Linear()))
    with pytest.raises(ValueError, match="Chain has no attention that x goes through"):
        control.ip_adapter(model("chain"), lambda p: p.flatten(2), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"makes tokens \(B, M, D\), got \(1, 1, 4, 4\)"):
        control.ip_adapter(base, lambda p: p, torch.zeros(1, 1, 4, 4))


def test_what_a_control_is_told_is_checked():
    base = model("dit")
    steered = control.controlnet(base, 2, name="map")
    x = sf.noise((2, 3, 8, 8), seed=0)
    with pytest.raises(ValueError, match=r"map must have shape \(rows, 2, H, W\), got \(2, 1, 8, 8\)"):
        steered.given(map=torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"map must lie in \[-1, 1\], got 0 to 255"):
        steered.given(map=torch.linspace(0, 255, 128).view(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"map must have the size \(8, 8\), x's own; got \(16, 16\)"):
        steered.given(map=torch.zeros(2, 2, 16, 16))(x, 0.5).x0  # noqa: B018
    with pytest.raises(ValueError, match=r"between must be two times .*, got \(0.8, 0.2\) for map"):
        steered.given(map=control.Hint(torch.zeros(2, 8, 8), between=(0.8, 0.2)))
    with pytest.raises(ValueError, match="strength of map must be a finite number"):
        steered.given(map=control.Hint(torch.zeros(2, 8, 8), float("inf")))
    for strength in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match=r"strength of map must be a finite number or one for each of 2 rows, got"):
            steered.given(map=control.Hint(torch.zeros(2, 2, 8, 8), strength))
    with pytest.raises(ValueError, match=r"map is empty: \(0, 2, 8, 8\)"):
        steered.given(map=torch.zeros(0, 2, 8, 8))
    for value in ("edges.png", control.Hint("edges.png")):
        with pytest.raises(TypeError, match=r"map must be a picture \(rows, 2, H, W\) or a Hint of one, got a str"):
            steered.given(map=value)
    with pytest.raises(TypeError, match="unknown condition 'edges'"):
        steered.given(edges=torch.zeros(2, 8, 8))


def test_what_a_prompt_of_pictures_is_told_is_checked():
    steered = control.ip_adapter(model("dit"), lambda p: p.flatten(1)[:, None, :4], torch.zeros(1, 1, 2, 2))
    told = steered.given(image=control.Hint(torch.zeros(2, 1, 3, 3), torch.tensor([1.0, 0.5]))).bound["image"]
    assert told["picture"].shape == (2, 1, 4) and told["strength"].tolist() == [1, 0.5]
    with pytest.raises(ValueError, match=r"image must have shape \(rows, 1, H, W\), got \(2, 3, 2, 2\)"):
        steered.given(image=torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match=r"image must lie in \[-1, 1\], got 0 to 255"):
        steered.given(image=torch.linspace(0, 255, 4).view(1, 1, 2, 2))
    with pytest.raises(ValueError, match="image is empty"):
        steered.given(image=torch.zeros(0, 1, 2, 2))
    with pytest.raises(TypeError, match="image must be a picture"):
        steered.given(image="cat.png")
    with pytest.raises(ValueError, match="strength of image must be"):
        steered.given(image=control.Hint(torch.zeros(2, 1, 2, 2), torch.ones(3)))


def test_a_control_in_a_file_is_refused_by_another_model(tmp_path):
    steered = shaken(control.controlnet(model("dit"), 1, name="edges"))
    control.save_control(steered, tmp_path / "edges")
    with pytest.raises(TypeError, match=r"a Steered is no model of its own: .* sf\.control\.save_control"):
        sf.save(steered, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert (tmp_path / "edges" / "control.safetensors").stat().st_size < 200_000
    with pytest.raises(
        sf.training.ModelFileError, match=r"steers blocks\.0, blocks\.1, and here x goes through down\.0"
    ):
        control.load_control(model("unet"), tmp_path / "edges")
    wide = sf.Denoiser(DiT(3, 2, 24, 4, 2), sf.schedules.Linear(), shape=(3, 8, 8))
    with pytest.raises(
        sf.training.ModelFileError, match=r"made for another model: .* has the shape .* in the file and"
    ):
        control.load_control(wide, tmp_path / "edges")
    with pytest.raises(TypeError, match="DiT has no control to write"):
        control.save_control(wide, tmp_path / "none")
    with pytest.raises(sf.training.ModelFileError, match=r"control\.json is missing"):
        control.load_control(wide, tmp_path / "nowhere")
