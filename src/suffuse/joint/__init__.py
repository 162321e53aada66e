"""Joint denoising: a model of small things makes a large one, or one thing with many faces, by agreeing across views.

Denoisers   average, anagram, agree, syncdiffusion, collage:  sf.sample(average(model, Crops(...)), noise, steps=30)
Function    sample: where the state lives, and what is merged

Views are a LinearOperator from a canonical space, such as `sf.operators.Crops`; merging is its weighted pinv.
"""

from suffuse.joint.anagram import VIEWS, anagram, view
from suffuse.joint.average import average
from suffuse.joint.collage import collage
from suffuse.joint.segments import Segments
from suffuse.joint.syncdiffusion import look, syncdiffusion
from suffuse.joint.synchronise import MERGES, agree, sample
from suffuse.joint.views import Joint, Views

__all__ = [
    "MERGES",
    "VIEWS",
    "Joint",
    "Segments",
    "Views",
    "agree",
    "anagram",
    "average",
    "collage",
    "look",
    "sample",
    "syncdiffusion",
    "view",
]
