"""Networks of every kind for controls and adapters: ours, and two that a user may have written."""

import torch
import torch.nn.functional as F
from torch import nn

import suffuse as sf
from suffuse.adapters import lora
from suffuse.nets import DiT, MMDiT, UNet, Words

WORDS = ("a", "red", "square", "blue", "ring", "on")
TEXT = {"text": ["a red square", "blue ring"]}


class Skipping(nn.Module):
    """A user's U-Net, whose skips are sums, in attributes instead of lists."""

    def __init__(self):
        super().__init__()
        self.enter, self.fine = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.mid = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.leave = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        a = self.enter(x) + t.view(-1, 1, 1, 1)
        b = self.fine(F.silu(a))
        h = F.silu(self.mid(F.silu(self.down(b))))
        h = self.up(F.interpolate(h, scale_factor=2))
        return self.leave(F.silu(h + b))


class Chain(nn.Module):
    """A user's chain of convolutions."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x, t):
        return self.body(x) * (1 + t.view(-1, 1, 1, 1))


def text():
    return {"text": Words(WORDS, 16, layers=1)}


MAKE = {
    "unet": lambda: UNet(3, 8, (1, 2), 1, (1,), 2, conditions=text()),
    "dit": lambda: DiT(3, 2, 16, 4, 2, conditions=text()),
    "mmdit": lambda: MMDiT(3, 2, 16, 4, 2, conditions=text()),
    "skipping": Skipping,
    "chain": Chain,
}
OURS = ["unet", "dit", "mmdit"]


def spread(net, scale=0.2, seed=0):
    """With no weight at zero, so that everything is heard."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return net


def model(kind, shape=(3, 8, 8)):
    """A model with random weights, told a text where it can be."""
    torch.manual_seed(0)
    made = sf.Denoiser(spread(MAKE[kind]()).eval(), sf.schedules.Linear(), "velocity", shape=shape)
    return made.given(**TEXT) if kind in OURS else made


def x_of(made, n=2):
    return sf.noise((n, *made.shape), seed=3)


def said(made, x, t=0.5):
    with torch.no_grad():
        return made(x, t).x0


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def shaken(made, seed=5, scale=0.3):
    """What is learned, away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in sf.adapters.Learned(made).parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return made


def adapted(made, **how):
    return shaken(lora(made, r"conv|body|up|mid|attention|qkv", **how))
