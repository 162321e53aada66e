"""Spatial control and image prompts, on any network: each finds its places by running the network once.

model = sf.control.controlnet(model, channels=1, name="edges")        # bit for bit the model, until it is trained
x = sf.sample(model.given(text="a red square", edges=sf.control.Hint(edges, 0.8, between=(0.2, 1.0))), noise)
"""

from __future__ import annotations

from suffuse.control.concatenated import concatenated
from suffuse.control.controlnet import controlnet
from suffuse.control.extract import BONES, canny, depth, masks, scribble, skeleton, soft_edges
from suffuse.control.fidelity import edge_f1, joint_error
from suffuse.control.files import load_control, save_control
from suffuse.control.ip import ip_adapter
from suffuse.control.picture import Hint
from suffuse.control.t2i import t2i_adapter

__all__ = [
    "BONES",
    "Hint",
    "canny",
    "concatenated",
    "controlnet",
    "depth",
    "edge_f1",
    "ip_adapter",
    "joint_error",
    "load_control",
    "masks",
    "save_control",
    "scribble",
    "skeleton",
    "soft_edges",
    "t2i_adapter",
]
