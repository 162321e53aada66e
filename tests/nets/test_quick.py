"""What makes a U-Net fast changes nothing that it computes."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap

from suffuse import nets
from suffuse.nets.attention import modulate
from suffuse.nets.quick import FINE, Pointwise, ToldNorm, quick

SIDE = int(FINE**0.5)


def unet(**options):
    torch.manual_seed(0)
    net = nets.UNet(3, width=16, multipliers=(1, 2), blocks=1, attention=(-1,), heads=2, **options)
    for p in net.parameters():
        p.data.add_(0.02 * torch.randn_like(p))
    return net


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_told_norm_is_the_norm_and_then_what_it_is_told(layout):
    torch.manual_seed(0)
    told, h = ToldNorm(4, 16).double(), 3 + torch.randn(5, 16, 8, 8).double()
    told.weight.data.normal_(), told.bias.data.normal_()
    shift, scale = torch.randn(2, 5, 16).double().unbind()
    expected = modulate(nn.GroupNorm.forward(told, h), shift[:, :, None, None], scale[:, :, None, None])
    assert told(h.to(memory_format=layout), shift, scale).allclose(expected, atol=1e-12)
    assert told(h[:0], shift[:0], scale[:0]).shape == (0, 16, 8, 8)


def test_its_gradients_are_those_of_the_two():
    torch.manual_seed(0)
    told, h = ToldNorm(2, 4).double(), torch.randn(3, 4, 2, 2).double().requires_grad_()
    given = torch.randn(2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda h, given: told(h, *given), (h, given))


@pytest.mark.parametrize("side", [2, 8], ids=["coarse", "fine"])
def test_a_pointwise_convolution_in_bfloat16_is_one(side):
    torch.manual_seed(0)
    conv, h = Pointwise(24, 16).bfloat16(), torch.randn(3, 24, side, side).bfloat16()
    assert conv(h).allclose(nn.Conv2d.forward(conv.float(), h.float()).bfloat16(), atol=0.02)


def test_fine_maps_have_their_channels_last_in_float32_alone():
    h = torch.randn(2, 8, SIDE, SIDE)
    assert quick(h).is_contiguous(memory_format=torch.channels_last)
    assert quick(h[:, :, ::2, ::2]).is_contiguous() and not quick(h[:, :, ::2, ::2], 2).is_contiguous()
    assert quick(h.bfloat16()).is_contiguous()
    assert torch.equal(quick(h), h)


@pytest.mark.parametrize("resample", ["conv", "block"])
def test_so_it_is_inside_a_network(resample):
    net, seen = unet(resample=resample), {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0]}))
    net(torch.randn(2, 3, SIDE, SIDE), torch.rand(2))
    for name, h in seen.items():
        if name != "stem":
            assert h.is_contiguous() == (h.shape[-1] < SIDE), (name, h.shape)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_network_says_the_same_of_any_layout_and_number_of_rows():
    net, x, t = unet(), torch.randn(3, 3, SIDE, SIDE), torch.rand(3)
    expected = net(x, t)
    assert net(x.to(memory_format=torch.channels_last), t).allclose(expected, atol=1e-5)
    assert torch.jit.trace(net, (x[:2], t[:2]), check_trace=False)(x, t).allclose(expected, atol=1e-5)
    assert net.double()(x.double(), t.double()).float().allclose(expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_it_has_forward_derivatives_and_gradients_by_row():
    net, x, t = unet(), torch.randn(2, 3, SIDE, SIDE), torch.rand(2)
    v = torch.randn_like(x)
    _, along = jvp(lambda x: net(x, t), (x,), (v,))
    exact = unet().double()
    wanted = (exact((x + 1e-4 * v).double(), t.double()) - exact((x - 1e-4 * v).double(), t.double())) / 2e-4
    assert (along - wanted).norm() < 1e-3 * wanted.norm()

    def square(weights, x, t):
        return functional_call(net, weights, (x[None], t[None])).square().mean()

    weights = {name: p.detach() for name, p in net.named_parameters()}
    rows = vmap(torch.func.grad(square), (None, 0, 0))(weights, x, t)
    net(x[1:], t[1:]).square().mean().backward()
    name = "down.0.block.conv1.weight"
    assert rows[name][1].allclose(net.get_parameter(name).grad, atol=1e-6)


def test_hooks_on_its_parts_are_called():
    net, called = unet(), set()
    for name, layer in net.named_modules():
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(2, 3, 16, 16), torch.rand(2))
    assert called == {name for name, _ in net.named_modules() if not name.endswith(("down", "up", "middle"))} - {
        name for name, layer in net.named_modules() if isinstance(layer, nn.ModuleList)
    }
