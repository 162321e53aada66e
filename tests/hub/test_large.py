"""Ways to make a large model fit: tiles, a few rows at a time, parts that wait, a compiled network. Same results."""

import copy

import pytest
import torch

import suffuse as sf
from suffuse import grids, hub, samplers
from suffuse.hub.autoencoder import KLCodec, resident

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.hub import folders  # noqa: E402
from tests.hub.test_families import DDIM, FLOW  # noqa: E402
from tests.hub.test_parity import close  # noqa: E402


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("large")


@pytest.fixture(scope="module")
def xl(root):
    torch.set_num_threads(1)
    folders.sdxl(root / "xl", DDIM)
    return hub.diffusers(root / "xl")


def drawn(model, rows=3):
    prompts = ["a cat", "2 cats", "ugly"][:rows]
    guided = sf.guide(model.given(text=prompts), model, 5.0)
    grid = grids.leading(model.schedule, 5, offset=1)
    return sf.sample(guided, sf.noise((rows, *model.shape), seed=0), sampler=samplers.ddim, grid=grid)


# A few rows at a time


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_a_batch_in_parts_is_the_batch(xl, rows):
    parts, seen = hub.split(xl, rows), []
    hook = xl.net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    made = drawn(parts)
    hook.remove()
    close(made, drawn(xl))
    each = [rows] * (6 // rows) + [6 % rows] * (6 % rows > 0)  # three prompts and their negatives
    assert seen == each * 5
    assert [id(p) for p in parts.net.parameters()] == [id(p) for p in xl.net.parameters()]


def test_parts_of_nothing(xl):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        hub.split(xl, 0)
    with pytest.raises(TypeError, match="only a torch module can be asked in parts, got function"):
        hub.split(sf.Denoiser(lambda x, t: x, xl.schedule), 2)


# Tiles


class Local(torch.nn.Module):
    """An autoencoder of 2 x 2 blocks that looks 1 latent around itself and no further: what tiles must reproduce."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.look = torch.nn.Conv2d(2, 3, 3)  # no padding: its edges are the caller's
        self.config = type("config", (), {"scaling_factor": 0.5, "shift_factor": 0.25, "block_out_channels": (1, 1)})()

    def decode(self, z):
        z = torch.nn.functional.pad(z, (1, 1, 1, 1), mode="replicate")
        return type("out", (), {"sample": torch.nn.functional.interpolate(self.look(z), scale_factor=2)})()

    def encode(self, x):
        mean = torch.nn.functional.avg_pool2d(x, 2)
        latent = type("posterior", (), {"mean": mean[:, :2], "std": mean[:, 2:].abs().expand(-1, 2, -1, -1)})()
        return type("out", (), {"latent_dist": latent})()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 21), (8, 8), (5, 30)])
def test_tiles_make_the_whole_where_the_network_looks_no_further_than_a_quarter_of_the_overlap(height, width):
    codec = KLCodec(Local())
    z, image = sf.noise((2, 2, height, width), seed=0), sf.noise((2, 3, 2 * height, 2 * width), seed=1)
    with torch.no_grad():
        close(codec.tiled(8, overlap=4).decode(z), codec.decode(z), 1e-5)
        close(codec.tiled(8, overlap=4).encode(image, seed=4), codec.encode(image, seed=4), 1e-5)
        if max(height, width) > 8:  # with less overlap the seams show: the network does look around itself
            assert (codec.tiled(8, overlap=0).decode(z) - codec.decode(z)).abs().max() > 0.1


def test_tiles_are_all_a_network_sees(xl):
    codec, seen = xl.codec.tiled(6, overlap=2), []
    hook = codec.net.decoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    with torch.no_grad():
        out = codec.decode(sf.noise((1, 4, 14, 10), seed=0))
    hook.remove()
    assert out.shape == (1, 3, 28, 20) and set(seen) == {(6, 6)} and len(seen) == 3 * 2
    assert codec is not xl.codec and xl.codec.tile is None
    with pytest.raises(ValueError, match="overlap by less than their size, got size=4 and overlap=4"):
        xl.codec.tiled(4, overlap=4)


# Parts that wait elsewhere


@pytest.mark.parametrize("offload", ["parts", "layers"])
def test_offloaded_models_draw_the_same(root, xl, offload):
    model = hub.diffusers(root / "xl", offload=offload, device="cpu")
    close(drawn(model), drawn(xl))
    image = sf.noise((1, 3, 16, 16), seed=2).clamp(-1, 1)
    with torch.no_grad():
        z = model.codec.encode(image, seed=1)
        close(z, xl.codec.encode(image, seed=1))
        close(model.codec.decode(z), xl.codec.decode(z))
    waits = next(model.net.parameters()).device.type == "meta"  # accelerate keeps its weights elsewhere
    assert waits == (offload == "layers")


def test_a_part_goes_to_its_device_while_it_works_and_comes_back():
    net, seen = torch.nn.Linear(2, 2), []
    moved = net._apply

    def recorded(fn, *args):
        seen.append(fn(torch.zeros(())).device.type)
        return net if seen[-1] == "meta" else moved(fn, *args)  # meta keeps nothing: it stands for an accelerator

    net._apply = recorded
    with pytest.raises(RuntimeError, match="in the middle"), resident(net, "meta"):
        assert seen == ["meta"]
        raise RuntimeError("in the middle")
    assert seen == ["meta", "cpu"]
    with resident(net, "cpu"), resident(net, None):
        pass
    assert seen == ["meta", "cpu"]


def test_which_parts_wait(root):
    model = hub.diffusers(root / "xl", offload="parts", device="meta")  # stands for an accelerator
    assert next(model.net.parameters()).device.type == "meta"
    waiting = [model.codec.net, *(e.net for e in model.conditions["text"].encoders)]
    assert {next(net.parameters()).device.type for net in waiting} == {"cpu"}
    assert model.codec.device == "meta" and all(e.device == "meta" for e in model.conditions["text"].encoders)
    with pytest.raises(ValueError, match="offload must be None, 'parts' or 'layers', got 'disk'"):
        hub.diffusers(root / "xl", offload="disk")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_only_the_network_is_compiled(name, root, xl):
    """torch.compile of the module in place: one whole graph, nothing of suffuse in it."""
    if name == "unet":
        model = copy.copy(xl)
        model.net = copy.deepcopy(xl.net, {id(v): v for v in xl.conditions.values()})
    else:
        folders.flux(root / "flux", FLOW(use_dynamic_shifting=True))
        model = hub.diffusers(root / "flux", size=(16, 16))
    told, x, graphs = model.given(text=["a cat", "2 cats"]), sf.noise((2, *model.shape), seed=0), []
    plain = sf.sample(told, x, steps=4)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    getattr(model.net, name).compile(backend=backend, fullgraph=True)
    close(sf.sample(told, x, steps=4), plain)
    assert len(graphs) == 1
