"""The adversarial game: each side learns from its own part only, and together they find the data."""

import math

import pytest
import torch
from torch import nn

from suffuse import fit, losses, nets, noise


class Linear(nn.Module):
    """D(x) = a . x"""

    def __init__(self, *a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return x @ self.a


class Point(nn.Module):
    """G(z) = b, whatever z."""

    def __init__(self, *b):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b))

    def forward(self, z):
        return self.b.expand(len(z), -1)


def test_each_side_learns_from_its_own_part():
    # Where G already makes the data and D sees no difference D has nothing to learn, while G would follow D's slope
    judge, made = Linear(0.3, -0.2), Point(1.0, 2.0)
    judge.a.data.mul_(1e-6)
    loss = losses.GAN(judge, 3, gamma=0.0)(made, {"x": torch.tensor([[1.0, 2.0]]).expand(8, 2)}).mean()
    loss.backward()
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-5), "three coins"
    assert judge.a.grad.abs().max() < 1e-5
    assert torch.allclose(made.b.grad, -0.5 * judge.a, rtol=1e-3)


def test_r1_is_the_slope_of_the_discriminator_at_the_data():
    judge, made, x = Linear(0.6, -0.8), Point(0.0, 0.0), noise((16, 2), seed=0)
    with_it, without = (losses.GAN(judge, 3, gamma=g)(made, {"x": x}) for g in (4.0, 0.0))
    assert torch.allclose(with_it - without, torch.full((16,), 4.0 / 2 * (0.36 + 0.64)))


def test_r1_once_in_several_steps_is_the_same_on_average():
    loss = losses.GAN(Linear(0.6, -0.8), 3, gamma=1.0, every=4)
    x, made = noise((2, 2), seed=0), Point(0.0, 0.0)
    plain = losses.GAN(loss.discriminator, 3, gamma=0.0)(made, {"x": x}).mean()
    torch.manual_seed(0)
    extra = torch.stack([loss(made, {"x": x}).mean() for _ in range(2000)]) - plain
    assert sorted(set(extra.detach().round(decimals=4).tolist())) == [0.0, 2.0]
    assert extra.mean().item() == pytest.approx(0.5, abs=4 * 2 * (0.25 * 0.75 / 2000) ** 0.5)


def test_the_game_finds_the_data():
    class Affine(nn.Module):
        def __init__(self):
            super().__init__()
            self.spread, self.mean = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.0))

        def forward(self, z):
            return self.spread * z + self.mean

    torch.manual_seed(0)
    judge = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    x = 0.3 + 0.2 * noise((4096, 1), seed=0)
    done = fit(losses.GAN(nn.Sequential(judge, nn.Flatten(0)), 1, gamma=0.1), {"x": x}, Affine(), steps=1500,
               batch_size=128, lr=3e-3, ema=0.99, precision="float32", progress=False)  # fmt: skip
    assert done.ema.mean.item() == pytest.approx(0.3, abs=0.03)
    assert abs(done.ema.spread.item()) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("options", "said"), [({"gamma": -1.0}, "gamma"), ({"every": 0}, "every")])
def test_settings_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        losses.GAN(Linear(1.0), 2, **options)


class TestStyle:
    def test_a_style_says_which_channels_count_and_not_how_loud(self):
        """Demodulated, white noise comes out with variance 1 whatever the style, and a louder style is the same."""
        from suffuse.nets.stylegan import ModulatedConv

        torch.manual_seed(0)
        conv = ModulatedConv(16, 8, 3, 16)
        with torch.no_grad():
            conv.scale.weight.copy_(torch.eye(16))
            conv.scale.bias.zero_()
            x, w = noise((4, 16, 32, 32), seed=0), 0.2 + noise((4, 16), seed=1).abs()
            y = conv(x, w)
            assert y[..., 1:-1, 1:-1].var((2, 3)).sub(1).abs().max() < 0.25
            assert torch.allclose(conv(x, 7 * w), y, atol=1e-5)
            off = w.clone()
            off[:, 3] = 0
            other = x.clone()
            other[:, 3] += 5
            assert torch.allclose(conv(x, off), conv(other, off), atol=1e-4), "a channel of style 0 is not heard"
            conv.demodulate = False
            assert torch.allclose(conv(x, 7 * w), 7 * conv(x, w), atol=1e-4)

    def test_the_generator_is_a_function_of_its_code_once_trained(self):
        torch.manual_seed(0)
        net = nets.StyleGenerator(1, 12, width=8, multipliers=(1, 2), latent=8)
        for module in net.modules():
            if hasattr(module, "strength"):
                nn.init.ones_(module.strength)
        z = noise((5, 8), seed=0)
        net.eval()
        assert torch.allclose(net(z)[3:], net(z[3:]), atol=1e-5), "row by row"
        assert torch.allclose(net(3 * z), net(z), atol=1e-4), "of its direction"
        assert (net(z)[0] - net(z)[1]).abs().max() > 1e-3
        net.train()
        assert (net(z) - net(z)).abs().max() > 1e-3, "in training noise is drawn"

    def test_the_discriminator_is_told_how_much_a_group_varies(self):
        torch.manual_seed(0)
        net = nets.StyleDiscriminator(1, 8, width=8, multipliers=(1, 2), group=4)
        x = noise((8, 1, 8, 8), seed=0)
        same = x[:1].expand(4, -1, -1, -1)
        with torch.no_grad():
            alone, among, apart = net(same)[0], net(torch.cat([x[:1], x[5:8]]))[0], net(x)
            assert abs(alone - among) > 1e-4
            assert torch.allclose(apart[:4], net(x[:4]), atol=1e-5), "and of no other group"

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="multiple of 4, got 30"):
            nets.StyleGenerator(1, 30)
        with pytest.raises(ValueError, match=r"codes \(B, 64\), got \(2, 3\)"):
            nets.StyleGenerator(1, 28)(torch.zeros(2, 3))
        with pytest.raises(ValueError, match="halves 2 x"):
            nets.StyleDiscriminator(1, 28)(torch.zeros(2, 1, 30, 30))
