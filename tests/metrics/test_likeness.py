"""Likeness of pairs: equal to scikit-image, right on known noise; a perceptual distance ignores what it should."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from suffuse import metrics, noise


def pair(size=24, channels=3, n=4):
    x = torch.nn.functional.interpolate(noise((n, channels, 6, 6), 0, dtype=torch.float64), size, mode="bilinear")
    x = (x * 0.5).clamp(-1, 1)
    return x, (x + 0.1 * noise(tuple(x.shape), 1, dtype=torch.float64)).clamp(-1, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_are_scikit_images(channels):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = pair(channels=channels)
    psnr, ssim = [], []
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        psnr.append(peak_signal_noise_ratio(x, y, data_range=2.0))
        ssim.append(
            structural_similarity(
                x, y, data_range=2.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )
    assert metrics.psnr(a, b).value == pytest.approx(sum(psnr) / 4, rel=1e-6)
    assert metrics.ssim(a, b).value == pytest.approx(sum(ssim) / 4, rel=1e-6)
    assert metrics.ssim(a, a).value == pytest.approx(1) and math.isinf(metrics.psnr(a, a).value)


def test_psnr_of_known_noise():
    """Of Gaussian noise of deviation 0.1 in a range of 2 it is 20 log10(20) = 26.02 dB."""
    a = torch.zeros(50, 1, 32, 32)
    found = metrics.psnr(a, 0.1 * noise((50, 1, 32, 32), 0))
    assert found.low - 0.01 < 20 * math.log10(20) < found.high + 0.01 and found.n == 50


class Eye(nn.Module):
    """Two layers; a later one has no places."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Flatten())
        self.scores = nn.Sequential(nn.LazyLinear(4), nn.ReLU())

    def forward(self, x):
        return self.scores(self.body(x))


@pytest.fixture
def eye():
    net = Eye().double()
    net(torch.zeros(1, 3, 24, 24, dtype=torch.float64))
    return net.eval()


def test_a_perceptual_distance_sees_features_up_to_their_scale(eye):
    a, b = pair()
    d = metrics.perceptual(a, b, eye, features="eye")
    far = metrics.perceptual(a, b.flip(0), eye, features="eye")
    assert 0 < d.high < far.low and (d.features, d.convention) == ("eye", "not LPIPS")
    assert metrics.perceptual(a, a, eye, features="eye").value == 0
    louder = nn.Sequential(*eye.body[:2]).eval()
    quiet = metrics.perceptual(a, b, louder, features="eye").value
    with torch.no_grad():
        louder[0].weight *= 7
        louder[0].bias *= 7
    assert metrics.perceptual(a, b, louder, features="eye").value == pytest.approx(quiet, rel=1e-9)


def test_a_perceptual_distance_is_by_row_and_layers_add(eye):
    a, b = pair()
    both = metrics.perceptual(a, b, eye, features="eye").value
    one, two = (metrics.perceptual(a, b, eye, features="eye", layers=[eye.body[k]]).value for k in (1, 3))
    assert both == pytest.approx(one + two, rel=1e-9) and min(one, two) > 0
    halves = [metrics.perceptual(a[s], b[s], eye, features="eye").value for s in (slice(0, 2), slice(2, 4))]
    assert both == pytest.approx(sum(halves) / 2, rel=1e-9)
    assert not any(m._forward_hooks for m in eye.modules()), "nothing is left behind"


def test_opposite_features_are_as_far_as_can_be():
    """One 1 x 1 layer without bias and without activation: features of -x are the opposite, so |u + u|^2 = 4."""
    net = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False)).double().eval()
    x = pair()[0]
    assert metrics.perceptual(x, -x, net, features="line", layers=[net[0]]).value == pytest.approx(4, rel=1e-9)


def test_the_judge_that_ships_measures_pictures():
    from suffuse.data.shapes import Scenes

    judge = metrics.shapes.judge("use")
    x = Scenes(0)(0, 8).images
    near = metrics.perceptual(x, (x + 0.05).clamp(-1, 1), judge.net, features="shapes judge 'use'")
    far = metrics.perceptual(x, x.roll(1, 0), judge.net, features="shapes judge 'use'")
    assert near.high < far.low and far.features == "shapes judge 'use'"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_lpips_without_torchvision_says_what_to_use():
    a, b = pair(n=2)
    with pytest.raises(ModuleNotFoundError, match=r"perceptual.*is not LPIPS"):
        metrics.lpips(a, b)


def test_misuse_is_said(eye):
    a, b = pair()
    for call, message in (
        (lambda: metrics.psnr(a, b[:2]), r"two equal \(N, C, H, W\)"),
        (lambda: metrics.psnr(a[:1], b[:1]), "N at least 2"),
        (lambda: metrics.psnr(a * 127, b * 127), r"pictures in \[-1, 1\], got"),
        (lambda: metrics.ssim(a[..., :8, :8], b[..., :8, :8]), r"11 pixels, the pictures have \(8, 8\)"),
        (lambda: metrics.perceptual(a, b, eye, features="eye", layers=[eye.scores]), r"none of 1 layers gives"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(RuntimeError, match="eval mode"):
        metrics.perceptual(a, b, eye.train(), features="eye")
