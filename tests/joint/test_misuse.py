"""Law 9 for joint denoising: one clear sentence for what cannot be."""

import pytest
import torch

import suffuse as sf
from suffuse import joint, samplers
from suffuse import operators as ops

from .worlds import normal

SIZE = (1, 6, 6)
PRIOR = sf.oracle.Gaussian(torch.zeros(SIZE), 0.5)
NOISE = sf.noise((1, *SIZE), seed=0)
ONE = ops.Identity()


def _run(made, noise=NOISE):
    return sf.sample(made, noise, steps=2)


def _told(k):
    """A model told k labels, and guided by another."""
    net = sf.nets.UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), conditions={"label": sf.nets.Label(9)})
    model = sf.Denoiser(net, sf.schedules.Linear(), predicts="velocity")
    return sf.guide(model.given(label=torch.arange(k)), model, 2.0)


MISUSE = {
    "not orthogonal": (
        lambda: joint.anagram(PRIOR, [ONE, ops.Rotation(20, (6, 6))]),
        ValueError,
        r"view 1, Rotation\(20, \(6, 6\)\), is not orthogonal",
    ),
    "not white": (
        lambda: _run(joint.average(PRIOR, [ONE, ops.GaussianBlur(1.0)])),
        ValueError,
        r"view 1, GaussianBlur.*does not keep noise white.*state='views' takes any",
    ),
    "not white, in steps": (
        lambda: joint.sample(PRIOR, [ops.Scale(2.0)], NOISE, merge="x", steps=2),
        ValueError,
        r"view 0, Scale\(2\).*does not keep noise white",
    ),
    "not linear": (
        lambda: joint.average(PRIOR, [ONE, ops.negative(0, 1)]),
        TypeError,
        "stack takes linear operators",
    ),
    "an anagram of what is not linear": (
        lambda: joint.anagram(PRIOR, [ONE, ops.HighDynamicRange()]),
        TypeError,
        "view 1 must be a linear operator",
    ),
    "uncovered": (
        lambda: _run(joint.average(sf.oracle.Gaussian(torch.zeros(1, 4, 6), 0.5), [ops.Crop((1, 0, 4, 6), (6, 6))])),
        ValueError,
        r"the views leave 12 of 36 values of the canonical space uncovered, the first at \(0, 0, 0\)",
    ),
    "uncovered by weights": (
        lambda: _run(joint.average(PRIOR, [ONE, ONE], weights=torch.arange(6.0))),
        ValueError,
        "weights of shape",
    ),
    "weightless": (
        lambda: _run(joint.average(PRIOR, [ONE], weights=torch.ones(6, 6).tril())),
        ValueError,
        "the views leave 15 of 36 values",
    ),
    "negative weights": (
        lambda: joint.average(PRIOR, [ONE], weights=[-1.0]),
        ValueError,
        "at least 0, the smallest is -1",
    ),
    "chunk": (lambda: joint.average(PRIOR, [ONE], chunk=0), ValueError, "chunk must be at least 1 view, got 0"),
    "state": (lambda: joint.sample(PRIOR, [ONE], NOISE, state="view", steps=2), ValueError, "got 'view' and 'x0'"),
    "merge": (lambda: joint.sample(PRIOR, [ONE], NOISE, merge="v", steps=2), ValueError, "got 'canonical' and 'v'"),
    "holes in noise": (
        lambda: joint.sample(PRIOR, [ONE], NOISE, holes=True, steps=2),
        ValueError,
        "state='views' leaves them 0",
    ),
    "eps of pure noise": (
        lambda: joint.sample(PRIOR, [ONE], NOISE[:, None], state="views", merge="eps", steps=2),
        ValueError,
        "merging eps says nothing of x0 at t=1",
    ),
    "noise of another shape": (
        lambda: joint.sample(PRIOR, [ONE, ONE], NOISE[:, None], state="views", steps=2),
        ValueError,
        r"\(B, n, ...\) with n = 2, got \(1, 1, 1, 6, 6\)",
    ),
    "noise of another size": (
        lambda: _run(joint.average(PRIOR, ops.Crops(6, 3, (6, 12)))),
        ValueError,
        r"is for a canvas of \(6, 12\)",
    ),
    "no next time": (
        lambda: joint.syncdiffusion(PRIOR, [ONE], lambda a, b: (a - b).flatten(1).sum(1), w=1.0)(NOISE, 0.5),
        ValueError,
        "say to=",
    ),
    "w": (lambda: joint.syncdiffusion(PRIOR, [ONE], torch.dist, w=-1), ValueError, "must be at least 0, got -1"),
    "anchor": (
        lambda: _run(joint.syncdiffusion(PRIOR, [ONE], torch.dist, w=1, anchor=1)),
        ValueError,
        "one of 1 views, got number 1",
    ),
    "a collage in rows": (
        lambda: joint.collage(PRIOR, ops.Crops(6, 3, (12, 12))),
        ValueError,
        "takes windows in one row",
    ),
    "a collage of turns": (lambda: joint.collage(PRIOR, [ONE]), TypeError, "takes a row of windows"),
    "a view's name": (lambda: joint.view("rotate45", (8, 8)), ValueError, "unknown view 'rotate45': one of identity"),
    "a jigsaw that does not fit": (lambda: joint.view("jigsaw3", (8, 8)), ValueError, "cannot be cut into 3 x 3"),
    "a stride with gaps": (lambda: joint.Segments(4, 5, 20), ValueError, "parts are left out: 5"),
    "a window too long": (lambda: joint.Segments(9, 1, 8), ValueError, "at most the signal's length, 8, got 9"),
    "a canvas too small": (lambda: ops.Crops(8, 4, (6, 12)), ValueError, "size must be at least 1 and at most the can"),
    "chunks of what remembers": (
        lambda: joint.average(
            sf.denoiser(lambda x, t, to, part, state: part(x, t), [PRIOR], state=dict, name="memory"), [ONE], chunk=1
        ),
        ValueError,
        "keeps something from one evaluation to the next",
    ),
    **{
        f"{k} conditions, {'in chunks' if chunk else 'at once'}": (
            lambda k=k, chunk=chunk: _run(joint.average(_told(k), [ONE, ONE, ONE], chunk=chunk)),
            ValueError,
            f"has 1 row or 3, the 3 views of each of 1: got {k} rows",
        )
        for k in (2, 8)
        for chunk in (None, 1)
    },
    "a push at no times": (
        lambda: joint.syncdiffusion(PRIOR, [ONE], joint.look, w=1.0, between=(0.9, 0.1)),
        ValueError,
        r"0 <= low <= high <= 1, got \(0.9, 0.1\)",
    ),
    "weights twice": (
        lambda: joint.average(PRIOR, joint.Views([ONE]), weights=[1.0]),
        ValueError,
        "have their own weights",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, kind, message = MISUSE[name]
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 330, "one sentence"


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("width", [6, 7, 9, 12, 17, 31])
@pytest.mark.parametrize("stride", [1, 2, 4, 5, 6])
def test_any_canvas_and_stride_works(width, stride, wrap):
    """Windows of a constant: the canvas is that constant, whatever the windows."""
    prior = sf.oracle.Gaussian(torch.full((1, 6, 6), 0.7), 1e-6)
    for canvas in ((6, width), (width, 9)):
        A = ops.Crops(6, stride, canvas, wrap=wrap)
        x = sf.sample(
            joint.average(prior, A, chunk=7), sf.noise((1, 1, *canvas), seed=0), sampler=samplers.ddim, steps=2
        )
        assert (x - 0.7).abs().max() < 0.02
    A = joint.Segments(6, stride, width, wrap=wrap)
    prior = sf.oracle.Gaussian(torch.full((2, 6), 0.7), 1e-6)
    x = sf.sample(joint.average(prior, A), sf.noise((1, 2, width), seed=0), sampler=samplers.ddim, steps=2)
    assert (x - 0.7).abs().max() < 0.02


@pytest.mark.parametrize(
    "A", [joint.Segments(5, 2, 12), joint.Segments(4, 3, 10, wrap=True), joint.Segments(6, 6, 6)], ids=repr
)
def test_segments_are_an_operator(A):
    """Law 7, and the windows are where they should be."""
    x, y = normal(3, 2, A.length), normal(3, len(A.index), 2, A.size, seed=1)
    torch.testing.assert_close((A(x) * y).flatten(1).sum(1), (x * A.T(y)).flatten(1).sum(1))
    torch.testing.assert_close(A(A.pinv(A(x))), A(x))
    torch.testing.assert_close(A.pinv(A(x)), x)
    ramp = torch.arange(float(A.length))[None, None]
    for window in A(ramp)[0, :, 0]:
        assert ((window.diff() - 1) % A.length == 0).all() and (A.wrap or (window.diff() == 1).all())


def test_a_sampler_may_be_anything_that_runs():
    """An adaptive one chooses its own steps; views that begin alike and agree on x0 stay one canonical state."""
    z = normal(1, 1, 6, 8, seed=3)
    A = ops.Crops(6, 2, (6, 8))
    prior = sf.oracle.Mixture([0.5, 0.5], normal(2, 1, 6, 6, seed=4), 0.2)
    how = {"sampler": samplers.adaptive(rtol=1e-6, atol=1e-6)}
    x = joint.sample(prior, A, A(z), state="views", **how)
    torch.testing.assert_close(x, sf.sample(joint.average(prior, A), z, **how), rtol=1e-4, atol=1e-4)
