"""What is held grows with the canvas and the chunk, not with the number of windows."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import suffuse as sf
from suffuse import joint, samplers
from suffuse import operators as ops


class Held(TorchDispatchMode):
    """The most bytes of tensors made in here that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = WeakIdKeyDictionary(), 0, 0

    def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
        out = fn(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self.alive:
                    self.alive[storage] = storage.nbytes()
                    self.peak = max(self.peak, sum(self.alive.values()))
        return out


def _peak(width, how, chunk=4, stride=16):
    net = sf.nets.UNet(3, width=8, multipliers=(1, 2), blocks=1, attention=())
    model = sf.Denoiser(net, sf.schedules.Linear())
    z = sf.noise((1, 3, 32, width), seed=0)
    with Held() as held:  # the views as well
        views = ops.Crops(32, stride, (32, width))
        if how == "pushed":
            made = joint.syncdiffusion(model, views, joint.look, w=0.1, chunk=chunk)
        else:
            made = {"average": joint.average, "collage": joint.collage}[how](model, views, chunk=chunk)
        sf.sample(made, z, sampler=samplers.ddim, steps=2)
    return held.peak, z.numel() * z.element_size()


@pytest.mark.parametrize(("how", "stride"), [("average", 16), ("average", 4), ("pushed", 16), ("collage", 16)])
def test_32_x_2048_needs_what_32_x_256_does_and_its_canvas(how, stride):
    """Eight canvases: the noise, the state, the sum of the windows, their count, the belief; no windows."""
    (small, canvas), (large, wide) = (_peak(width, how, stride=stride) for width in (256, 2048))
    assert large - small < 9 * (wide - canvas)  # what windows believe would be two more, or eight


def test_all_windows_at_once_do_grow():
    (small, canvas), (large, wide) = _peak(256, "average", None), _peak(2048, "average", None)
    assert large - small > 50 * (wide - canvas)
