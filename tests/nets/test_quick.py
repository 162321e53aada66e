"""What makes a U-Net fast changes nothing that it computes."""

import pytest
import torch
from torch import nn

from suffuse import nets
from suffuse.nets.attention import modulate
from suffuse.nets.quick import FINE, pointwise, quick, told_norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_told_norm_is_the_norm_and_then_what_it_is_told(layout):
    torch.manual_seed(0)
    norm, h = nn.GroupNorm(4, 16).double(), 3 + torch.randn(5, 16, 8, 8).double()
    norm.weight.data.normal_(), norm.bias.data.normal_()
    shift, scale = torch.randn(2, 5, 16).double().unbind()
    expected = modulate(norm(h), shift[:, :, None, None], scale[:, :, None, None])
    assert told_norm(norm, h.to(memory_format=layout), shift, scale).allclose(expected, atol=1e-12)


def test_its_gradients_are_those_of_the_two():
    torch.manual_seed(0)
    norm, h = nn.GroupNorm(2, 4).double(), torch.randn(3, 4, 2, 2).double().requires_grad_()
    told = torch.randn(2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda h, told: told_norm(norm, h, *told), (h, told))


def test_a_pointwise_convolution_in_bfloat16_is_one():
    torch.manual_seed(0)
    conv, h = nn.Conv2d(24, 16, 1).bfloat16(), torch.randn(3, 24, 8, 8).bfloat16()
    assert pointwise(conv, h).allclose(conv.float()(h.float()).bfloat16(), atol=0.02)


def test_fine_maps_have_their_channels_last_in_float32_alone():
    side = int(FINE**0.5)
    h = torch.randn(2, 8, side, side)
    assert quick(h).is_contiguous(memory_format=torch.channels_last)
    assert quick(h[:, :, ::2, ::2]).is_contiguous() and not quick(h[:, :, ::2, ::2], 2).is_contiguous()
    assert quick(h.bfloat16()).is_contiguous()
    assert torch.equal(quick(h), h)


def test_a_network_says_the_same_of_any_layout():
    torch.manual_seed(0)
    net = nets.UNet(3, width=16, multipliers=(1, 2), blocks=1, attention=(-1,), heads=2)
    for p in net.parameters():
        p.data.add_(0.02 * torch.randn_like(p))
    x, t = torch.randn(2, 3, 32, 32), torch.rand(2)
    expected = net(x, t)
    assert net(x.to(memory_format=torch.channels_last), t).allclose(expected, atol=1e-5)
    assert net.double()(x.double(), t.double()).float().allclose(expected, atol=1e-4)
