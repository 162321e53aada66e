"""Joint denoising where the answer is known: Gaussian views, whose whole is a Gaussian too."""

from itertools import pairwise

import pytest
import torch

import suffuse as sf
from suffuse import joint, oracle, samplers

from . import worlds
from .worlds import ORTHOGONAL, SCHEDULES, SQUARE, WINDOWS, PerView, dense, normal, views

RULES = [samplers.ddim, samplers.ddpm, samplers.dpmpp(order=2), samplers.trig_adams(order=3), samplers.heun]
on_schedules = pytest.mark.parametrize("schedule", SCHEDULES)


def _weights(shape, kind):
    if kind == "even":
        return None, torch.ones(shape)
    if kind == "by view":
        w = torch.arange(1.0, shape[0] + 1)
        return w, w.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    w = normal(*shape, seed=9).exp()
    return w, w


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("even", RULES[0]), ("by view", RULES[1]), ("by pixel", RULES[0]), ("by pixel", RULES[3])],
    ids=["even", "by view, ddpm", "by pixel", "by pixel, default"],
)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_told_different_things_are_the_canvas_told_their_weighted_mean(name, kind, rule):
    """Windows N(m_i, c I) make the canvas N((A.T W A)^+ A.T W m, c I), with the same noise to the last digits."""
    A, shape = WINDOWS[name]
    z = normal(2, *shape, seed=1)
    seen = tuple(A(z).shape[1:])
    given, w = _weights(seen, kind)
    means, c, schedule = (
        normal(2 * seen[0], *seen[1:], seed=2),
        torch.tensor(0.3, dtype=worlds.F64),
        SCHEDULES["linear"],
    )
    P = dense(A, shape, w)
    made = joint.average(PerView(means, c, schedule), A, weights=given)
    x = sf.sample(made, z, sampler=rule, steps=5, seed=4)
    for i in range(2):
        mean = (P @ means.unflatten(0, (2, -1))[i].flatten()).reshape(shape)
        whole = sf.sample(
            oracle.Gaussian(mean, c, schedule=schedule), z[i : i + 1], sampler=rule, steps=5, seed=4, first=i
        )
        torch.testing.assert_close(x[i : i + 1], whole, rtol=1e-9, atol=1e-9)


@on_schedules
@pytest.mark.parametrize("kind", ["even", "by view"])
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_orthogonal_views_of_one_gaussian_are_that_gaussian(name, kind, schedule):
    """Views N(m_i, A_i S A_i.T) make N(weighted mean of A_i.T m_i, S), S any covariance."""
    A, schedule = ORTHOGONAL[name], SCHEDULES[schedule]
    d = 16
    root = normal(d, d, seed=3) / 4
    S = root @ root.T + 0.05 * torch.eye(d, dtype=worlds.F64)
    turned = [one(one(S.reshape(d, *SQUARE)).flatten(1).T.reshape(d, *SQUARE)).flatten(1) for one in A]
    means = normal(len(A), *SQUARE, seed=4)
    given, w = _weights(means.shape, kind)
    made = joint.anagram(PerView(means, torch.stack(turned), schedule), A, weights=given)
    back = torch.stack([one.adjoint(m[None])[0] for one, m in zip(A, means, strict=True)])
    mean = (w * back).sum(0) / w.sum(0)
    z = normal(1, *SQUARE, seed=5)
    for rule in RULES if kind == "even" else RULES[:1]:
        x = sf.sample(made, z, sampler=rule, steps=5, seed=4)
        whole = sf.sample(oracle.Gaussian(mean, S, schedule=schedule), z, sampler=rule, steps=5, seed=4)
        torch.testing.assert_close(x, whole, rtol=1e-9, atol=1e-9)


def test_the_flow_of_windows_ends_where_gaussians_are_carried():
    """Along the exact flow z_0 = P m + sqrt(c) z_1: no oracle, no sampler in the answer."""
    A, shape = WINDOWS["wrapped"]
    z = normal(1, *shape, seed=1)
    seen = tuple(A(z).shape[1:])
    means = normal(*seen, seed=2)
    made = joint.average(PerView(means, torch.tensor(0.25, dtype=worlds.F64), SCHEDULES["linear"]), A)
    x = sf.sample(made, z, steps=60)
    P = dense(A, shape, torch.ones(seen))
    torch.testing.assert_close(x[0].flatten(), P @ means.flatten() + 0.5 * z.flatten(), rtol=1e-4, atol=1e-4)


MIXTURE = oracle.Mixture([0.3, 0.3, 0.4], normal(3, 1, 4, 5, seed=5), 0.1, schedule=SCHEDULES["vp"])


@pytest.mark.parametrize("merge", joint.MERGES)
@pytest.mark.parametrize("rule", [samplers.ddim, samplers.ddim(eta=1.0), samplers.dpmpp(order=3)], ids=repr)
def test_what_is_merged_does_not_matter_for_one_canonical_state(merge, rule):
    A = WINDOWS["crops"][0]
    z = normal(2, 1, *worlds.CANVAS, seed=6)
    how = {"sampler": rule, "steps": 8, "seed": 7}
    x = joint.sample(MIXTURE, A, z, merge=merge, **how)
    torch.testing.assert_close(x, sf.sample(joint.average(MIXTURE, A), z, **how), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("merge", joint.MERGES)
def test_a_run_may_begin_with_a_picture(merge):
    """Every view begins with what it sees of it."""
    A, x0 = WINDOWS["crops"][0], normal(2, 1, *worlds.CANVAS, seed=2)
    z, how = normal(2, 1, *worlds.CANVAS, seed=6), {"sampler": samplers.ddim, "steps": 3, "start": (x0, 0.6)}
    x = joint.sample(MIXTURE, A, z, merge=merge, **how)
    torch.testing.assert_close(x, sf.sample(joint.average(MIXTURE, A), z, **how), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("merge", joint.MERGES)
def test_what_views_disagree_about_falls_as_the_merging_says(merge):
    """u = x - A P x is multiplied by sigma_s/sigma_t, alpha_s/alpha_t, 0 or 1 in a step of DDIM."""
    A, schedule = WINDOWS["crops"][0], MIXTURE.schedule
    seen = joint.Views(A)
    x = normal(2, 3, 1, 4, 5, seed=8)
    like = torch.zeros(2, 1, *worlds.CANVAS, dtype=worlds.F64)
    factor = {
        "x0": lambda a, b: schedule(b)[1] / schedule(a)[1],
        "eps": lambda a, b: schedule(b)[0] / schedule(a)[0],
        "x": lambda a, b: 0.0,
        "step": lambda a, b: 1.0,
    }[merge]
    apart = []

    def watched(x, t, *, to=None):
        apart.append((t, x.reshape(2, 3, 1, 4, 5)))
        return MIXTURE(x, t)

    watched.schedule = schedule
    joint.sample(watched, A, x, state="views", merge=merge, sampler=samplers.ddim, steps=5)
    left = [(t, x - A(seen.merge(x, like))) for t, x in apart]
    for (a, u), (b, v) in zip(left[:-1], left[1:], strict=True):
        torch.testing.assert_close(v, factor(a, b) * u, rtol=1e-9, atol=1e-9)
    assert len(left) == 5 and left[0][1].abs().max() > 0.5


def _apart(A, shape, y):
    """How far views y (B, n, *view) are apart where they show the same pixel, at most."""
    d = int(torch.Size(shape).numel())
    where = A(torch.arange(d, dtype=worlds.F64).reshape(1, *shape)).long().flatten().expand(len(y), -1)
    ends = [
        y.new_zeros(len(y), d).scatter_reduce(1, where, y.flatten(1), how, include_self=False)
        for how in ("amax", "amin")
    ]
    return (ends[0] - ends[1]).max().item()


def _views_of(name, schedule="vp"):
    """Windows, their state, and a prior of them that is no Gaussian."""
    A, shape = WINDOWS[name]
    x = A(normal(2, *shape, seed=1))
    means = normal(2, *x.shape[2:], seed=5)
    return A, shape, normal(*x.shape, seed=8), oracle.Mixture([0.4, 0.6], means, 0.1, schedule=SCHEDULES[schedule])


@pytest.mark.parametrize("t", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("merge", ["x0", "eps"])
def test_after_each_merge_beliefs_do_not_disagree_where_views_overlap(merge, name, chunk, t):
    """To the last bit, whatever was believed before."""
    A, shape, x, prior = _views_of(name)
    p = joint.agree(prior, A, merge=merge, chunk=chunk)(x, t)
    alone = prior(x.flatten(0, 1), t).x0.unflatten(0, x.shape[:2])
    assert _apart(A, shape, getattr(p, merge)) == 0 and _apart(A, shape, alone) > 0.1


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize(
    ("state", "merge"), [("views", "x"), ("views", "step"), ("canonical", "x"), ("canonical", "step")]
)
def test_after_each_merge_states_do_not_disagree_where_views_overlap(state, merge, name):
    """Every state a step leads to, of "x"; every change of it, of "step"; with noise of each view's own, or shared."""
    A, shape, x, prior = _views_of(name)
    asked = []

    def watched(x, t, *, to=None):
        asked.append(x.unflatten(0, (2, -1)))
        return prior(x, t)

    watched.schedule = prior.schedule
    z = x if state == "views" else normal(2, *shape, seed=8)
    joint.sample(watched, A, z, state=state, merge=merge, sampler=samplers.ddpm, steps=5, seed=3)
    merged = asked[1:] if merge == "x" or state == "canonical" else [b - a for a, b in pairwise(asked)]
    assert len(merged) == 4 and max(_apart(A, shape, y) for y in merged) < 1e-12
    assert _apart(A, shape, prior(asked[1].flatten(0, 1), 0.5).x0.unflatten(0, x.shape[:2])) > 0.1


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("how", ["average", "views", "step", "collage"])
def test_chunks_of_views_change_nothing(how, chunk):
    A, shape = WINDOWS["crops"]
    means, c = normal(6, 1, 4, 5, seed=2), torch.tensor(0.3, dtype=worlds.F64)
    model, z = PerView(means, c, SCHEDULES["vp"]), normal(2, *shape, seed=6)

    def made(chunk):
        if how == "collage":
            overlap = oracle.Gaussian(torch.zeros(1, 4, 2, dtype=worlds.F64), c, schedule=SCHEDULES["vp"])
            return sf.sample(joint.collage(model, A, overlap=overlap, chunk=chunk), z, steps=4)
        if how == "average":
            return sf.sample(joint.average(model, A, chunk=chunk), z, steps=4)
        noise = z if how == "step" else normal(2, 3, 1, 4, 5, seed=1)
        state = {"views": "views", "step": "canonical"}[how]
        return joint.sample(
            model, A, noise, state=state, merge="x0" if how == "views" else "step", chunk=chunk, steps=4
        )

    torch.testing.assert_close(made(chunk), made(None), rtol=1e-12, atol=1e-12)


def test_a_row_is_the_same_alone_and_in_a_batch():
    """With prompts of its own for every view of every row."""
    A, shape = WINDOWS["crops"]
    made = joint.average(
        PerView(normal(9, 1, 4, 5, seed=2), torch.tensor(0.3, dtype=worlds.F64), SCHEDULES["vp"]), A, chunk=2
    )
    z = normal(3, *shape, seed=6)
    all_of_them = sf.sample(made, z, steps=4)
    for index in (slice(1, 2), torch.tensor([1]), torch.tensor([False, True, False])):
        torch.testing.assert_close(sf.sample(made.rows(index), z[1:2], steps=4), all_of_them[1:2])


def test_a_step_may_take_rows():
    """`.take` during a run keeps each row with the prompts of its views."""
    A, shape = WINDOWS["crops"]
    made = joint.average(PerView(normal(6, 1, 4, 5, seed=2), torch.tensor(0.3, dtype=worlds.F64), SCHEDULES["vp"]), A)
    z = normal(2, *shape, seed=6)
    plain = sf.sample(made, z, sampler=samplers.ddim, steps=4)
    for step in sf.run(made, z, sampler=samplers.ddim, steps=4):
        if step.k == 1:
            step.take(torch.tensor([1, 0, 1]))
        x = step.x
    torch.testing.assert_close(x, plain[[1, 0, 1]])


def test_collage_is_exact_where_the_factors_are_independent_given_their_overlap():
    """Blocks a, b, c with (a, b) dependent and c apart: p(ab) p(bc) / p(b) is the whole, and averaging is not."""
    schedule, w = SCHEDULES["vp"], 3
    root = normal(2 * w, 2 * w, seed=3) / 2
    S = torch.eye(3 * w, dtype=worlds.F64) * 0.2
    S[: 2 * w, : 2 * w] += root @ root.T
    mean = normal(3 * w, seed=4)
    A = joint.Segments(2 * w, w, 3 * w)
    covs = torch.stack([S[: 2 * w, : 2 * w], S[w:, w:]])
    model = PerView(torch.stack([mean[: 2 * w], mean[w:]])[:, None], covs, schedule)
    middle = oracle.Gaussian(mean[None, w : 2 * w], S[w : 2 * w, w : 2 * w], schedule=schedule)
    whole = oracle.Gaussian(mean[None], S, schedule=schedule)
    z = normal(1, 1, 3 * w, seed=5)
    exact = sf.sample(whole, z, sampler=samplers.ddpm, steps=6, seed=1)
    x = sf.sample(joint.collage(model, A, overlap=middle), z, sampler=samplers.ddpm, steps=6, seed=1)
    torch.testing.assert_close(x, exact, rtol=1e-9, atol=1e-9)
    averaged = sf.sample(joint.average(model, A), z, sampler=samplers.ddpm, steps=6, seed=1)
    assert (averaged - exact).abs().max() > 0.01


@pytest.mark.parametrize("name", ["crops", "wrapped", "segments", "loop"])
def test_a_collage_of_independent_pixels_is_their_product(name):
    A, shape = WINDOWS[name]
    schedule = SCHEDULES["linear"]
    z = normal(2, *shape, seed=6)
    prior = lambda x, t: oracle.Gaussian(torch.zeros(x.shape[1:], dtype=worlds.F64), 0.4, schedule=schedule)(x, t)  # noqa: E731
    prior.schedule = schedule
    whole = sf.sample(prior, z, sampler=samplers.ddim, steps=5)
    x = sf.sample(joint.collage(prior, A, chunk=2), z, sampler=samplers.ddim, steps=5)
    torch.testing.assert_close(x, whole, rtol=1e-9, atol=1e-9)


def test_syncdiffusion_moves_a_step_by_the_gradient_of_the_distance():
    """For Gaussian windows d x0/d x = k, so half a squared distance to the anchor pushes by w k (x0_i - x0_anchor).

    Each window is told another thing, and outside its times nothing is pushed.
    """
    A, schedule, c, w = WINDOWS["crops"][0], SCHEDULES["vp"], 0.3, 0.2
    prior = PerView(normal(6, 1, 4, 5, seed=2), torch.tensor(c, dtype=worlds.F64), schedule)
    z = normal(2, 1, *worlds.CANVAS, seed=6)
    t, to, anchor = 0.6, 0.4, 1

    def distance(a, b):
        return (a - b).square().flatten(1).sum(1) / 2

    def step(denoiser):
        walk = samplers.ddim.plan(schedule, [t, to]).run(denoiser, z)
        return next(iter(walk)).x

    def pushed(*between):
        return step(joint.syncdiffusion(prior, A, distance, w=w, anchor=anchor, between=between, chunk=2))

    plain = step(joint.average(prior, A))
    push = plain - pushed(0.5, 0.6)
    x0 = prior(A(z).flatten(0, 1), t).x0.unflatten(0, (2, 3))
    alpha, sigma = schedule(t)
    k = alpha * c / (alpha**2 * c + sigma**2)
    P = dense(A, (1, *worlds.CANVAS), torch.ones(3, 1, 4, 5))
    wanted = (w * k * (x0 - x0[:, anchor : anchor + 1])).flatten(1) @ P.T
    torch.testing.assert_close(push.flatten(1), wanted, rtol=1e-8, atol=1e-8)
    for apart in ((0.0, 0.55), (0.65, 1.0)):
        torch.testing.assert_close(pushed(*apart), plain, rtol=1e-12, atol=1e-12)


def test_syncdiffusion_pushes_as_much_with_correctors_as_without():
    """The default asks mostly at the end of each step, where the push of that step belongs too."""
    A, schedule = WINDOWS["crops"][0], SCHEDULES["vp"]
    prior, z = oracle.Gaussian(normal(1, 4, 5, seed=2), 0.3, schedule=schedule), normal(64, 1, *worlds.CANVAS, seed=6)

    def distance(a, b):
        return (a - b).square().flatten(1).sum(1) / 2

    def far(w, rule):
        y = A(sf.sample(joint.syncdiffusion(prior, A, distance, w=w), z, steps=12, sampler=rule))
        return (y - y[:, :1]).square().mean().item()

    plain, push = far(0.0, None), far(0.05, samplers.ddim)
    assert push < 0.85 * far(0.0, samplers.ddim)
    assert plain - far(0.05, None) > 0.5 * (plain - push)


def test_a_look_is_colours_and_patterns_wherever_they_lie():
    x = normal(2, 3, 16, 16, seed=1)
    assert (joint.look(x, x.roll((3, 5), (2, 3))) < 0.01).all(), "but for what comes in at the edges"
    torch.testing.assert_close(joint.look(x, x + 0.5), torch.full((2,), 0.75, dtype=worlds.F64))
    halves, fine, wide = (torch.tensor([1.0, -1.0]).repeat_interleave(k).repeat(8 // k) for k in (8, 1, 2))
    halves, fine, wide = (line.expand(2, 3, 16, 16) for line in (halves, fine, wide))
    assert (joint.look(halves, 3 * halves) > 10).all(), "contrast"
    assert (joint.look(fine, wide) > 1).all() and (joint.look(fine.mT, wide.mT) > 1).all(), "stripes"


class Tiny(torch.nn.Module):
    """A network of nothing in particular."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x).tanh() + t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("rule", [samplers.ddim, samplers.ddpm, None], ids=["ddim", "ddpm", "default"])
def test_the_identity_view_is_plain_sampling(rule):
    from suffuse import operators as ops

    model = sf.Denoiser(Tiny(), sf.schedules.Linear())
    z, how = sf.noise((2, 1, 6, 6), seed=1), {"sampler": rule, "steps": 8, "seed": 2}
    plain = sf.sample(model, z, **how)
    one, crop = [ops.Identity()], ops.Crops(6, 3, (6, 6))
    made = {
        "average": joint.average(model, one),
        "anagram": joint.anagram(model, one * 2),
        "one window": joint.average(model, crop),
        "syncdiffusion": joint.syncdiffusion(model, one, lambda a, b: (a - b).square().flatten(1).sum(1), w=1.0),
        "collage": joint.collage(model, crop),
    }
    found = {name: sf.sample(denoiser, z, **how) for name, denoiser in made.items()}
    found |= {merge: joint.sample(model, one, z, merge=merge, **how) for merge in joint.MERGES}
    if rule is not samplers.ddpm:
        for merge in ("x0", "x", "step"):
            found[f"views {merge}"] = joint.sample(model, one, z[:, None], state="views", merge=merge, **how)
    for name, x in found.items():
        assert (x - plain).abs().max() < 1e-6, name


@pytest.mark.parametrize("how", ["average", "pushed", "step"])
def test_a_wrapped_panorama_of_turned_noise_is_the_panorama_turned(how):
    """Nothing is an edge: turned by a stride, every window sees what its neighbour saw."""
    from suffuse import operators as ops

    A, model = ops.Crops(6, 2, (6, 14), wrap=True), sf.Denoiser(Tiny().double(), sf.schedules.Linear())
    z, rule = normal(2, 1, 6, 14, seed=1), {"sampler": samplers.ddim, "steps": 5}

    def made(z, anchor):
        if how == "step":
            return joint.sample(model, A, z, merge="step", **rule)
        pushed = joint.syncdiffusion(model, A, joint.look, w=0.3, anchor=anchor, chunk=3)
        return sf.sample(pushed if how == "pushed" else joint.average(model, A), z, **rule)

    turned = made(z.roll(2, -1), 1)
    torch.testing.assert_close(turned, made(z, 0).roll(2, -1), rtol=1e-9, atol=1e-9)
    assert (turned - made(z, 0)).abs().max() > 0.1


def test_merging_is_weighted_least_squares():
    """Also of views that interpolate, where A.T W A is not diagonal, and in any precision."""
    from suffuse import operators as ops

    size = (5, 4)
    turned = [ops.Identity(), ops.Rotation(20, size), ops.GaussianBlur(0.6)]
    for A, shape in [*WINDOWS.values(), (turned, (2, *size)), (ORTHOGONAL["inner"], SQUARE)]:
        y = normal(2, *views(A, normal(1, *shape)).shape[1:], seed=1)
        w = normal(*y.shape[1:], seed=2).exp()
        found = joint.Views(A, weights=w, chunk=2).merge(y, normal(2, *shape))
        torch.testing.assert_close(found.flatten(1), y.flatten(1) @ dense(A, shape, w).T, rtol=1e-6, atol=1e-6)
