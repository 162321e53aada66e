"""What is held grows with the canvas and the chunk, not with the number of windows."""

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


def _peak(width, chunk=4):
    net = sf.nets.UNet(3, width=8, multipliers=(1, 2), blocks=1, attention=())
    model = sf.Denoiser(net, sf.schedules.Linear())
    made = joint.average(model, ops.Crops(16, 4, (16, width)), chunk=chunk)
    z = sf.noise((1, 3, 16, width), seed=0)
    with Held() as held:
        sf.sample(made, z, sampler=samplers.ddim, steps=2)
    return held.peak, z.numel() * z.element_size()


def test_a_panorama_eight_times_as_wide_needs_its_canvas_more_and_no_more_windows():
    (small, canvas), (large, wide) = _peak(64), _peak(512)
    assert large - small < 12 * (wide - canvas), "states, sums and weights of the canvas, no more"
    together, _ = _peak(512, chunk=None)
    assert together > 5 * small, "all windows at once do grow"
