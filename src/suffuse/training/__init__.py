"""Training: `fit` a model to data, keep it, take it up again."""

from suffuse.training.checkpoint import ModelFileError, load, save
from suffuse.training.ema import EMA
from suffuse.training.fit import Fit, fit
from suffuse.training.interrupt import Stopped
from suffuse.training.parallel import PeerLostError, Peers, alone, gathered, joined, peers
from suffuse.training.power_ema import PowerEMA, post_hoc_ema
from suffuse.training.state import DiskFullError
from suffuse.training.trace import NotFiniteError
from suffuse.training.validation import validation

__all__ = [
    "EMA",
    "DiskFullError",
    "Fit",
    "ModelFileError",
    "NotFiniteError",
    "PeerLostError",
    "Peers",
    "PowerEMA",
    "Stopped",
    "alone",
    "fit",
    "gathered",
    "joined",
    "load",
    "peers",
    "post_hoc_ema",
    "save",
    "validation",
]
