"""Distances of distributions: equal to other libraries on the same numbers, right where the answer is known."""

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import scipy.stats
import torch

from suffuse import metrics, noise
from suffuse.data import toys

SAID = {"features": "noise"}


def normal(n, d, seed, mean=0.0, std=1.0):
    return mean + std * noise((n, d), seed, dtype=torch.float64)


def two():
    return normal(400, 6, 0, 0.2, 1.3), normal(300, 6, 1)


def test_kid_is_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    a, b = normal(300, 6, 0, 0.2, 1.3), normal(300, 6, 1)
    assert metrics.kid(a, b, **SAID).value == pytest.approx(poly_mmd(b, a).item(), rel=1e-6)


def test_the_biased_energy_distance_is_scipys():
    a, b = normal(400, 1, 0, 0.2, 1.3), normal(300, 1, 1)
    theirs = scipy.stats.energy_distance(a[:, 0], b[:, 0])
    assert metrics.energy_distance(a, b, biased=True, **SAID).value == pytest.approx(theirs**2, rel=1e-6)


def test_mmd_is_scikit_learns_kernel_summed():
    from sklearn.metrics.pairwise import rbf_kernel

    a, b = two()
    h = 1.7
    aa, bb, ab = (rbf_kernel(x, y, gamma=1 / (2 * h * h)) for x, y in ((a, a), (b, b), (a, b)))
    assert metrics.mmd(a, b, bandwidth=h, biased=True, **SAID).value == pytest.approx(
        aa.mean() + bb.mean() - 2 * ab.mean(), rel=1e-6
    )
    n, m = len(a), len(b)
    unbiased = (aa.sum() - n) / (n * (n - 1)) + (bb.sum() - m) / (m * (m - 1)) - 2 * ab.mean()
    assert metrics.mmd(a, b, bandwidth=h, **SAID).value == pytest.approx(unbiased, rel=1e-6)


@pytest.mark.parametrize("sizes", [(300, 300), (300, 200), (7, 5)])
def test_sliced_w1_on_a_line_is_scipys(sizes):
    a, b = normal(sizes[0], 1, 0, 0.2, 1.3), normal(sizes[1], 1, 1)
    mine = metrics.sliced_wasserstein(a, b, p=1, directions=3, **SAID).value
    assert mine == pytest.approx(scipy.stats.wasserstein_distance(a[:, 0], b[:, 0]), rel=1e-6)


def test_w2_is_found_by_trying_every_matching():
    from itertools import permutations

    a, b = normal(6, 3, 0), normal(6, 3, 1)
    cost = scipy.spatial.distance.cdist(a, b)
    for p in (1, 2):
        best = min(np.mean([cost[i, k] ** p for i, k in enumerate(order)]) for order in permutations(range(6)))
        assert metrics.wasserstein(a, b, p=p, **SAID).value == pytest.approx(best ** (1 / p), rel=1e-6)


def test_density_and_coverage_by_counting_balls():
    a, b = normal(120, 3, 0, 0.4), normal(90, 3, 1)
    tree = scipy.spatial.cKDTree(b)
    radius = tree.query(b, k=[6])[0][:, 0]
    inside = scipy.spatial.distance.cdist(a, b) <= radius
    assert metrics.density(a, b, **SAID).value == pytest.approx(inside.sum() / (5 * 120), rel=1e-6)
    assert metrics.coverage(a, b, **SAID).value == pytest.approx(inside.any(0).mean(), rel=1e-6)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_chamfer_is_a_query_of_two_trees(reduce):
    a, b = normal(150, 3, 0), normal(110, 3, 1)
    there, back = scipy.spatial.cKDTree(b).query(a)[0] ** 2, scipy.spatial.cKDTree(a).query(b)[0] ** 2
    wanted = there.sum() + back.sum() if reduce == "sum" else there.mean() + back.mean()
    found = metrics.chamfer(a, b, reduce=reduce)
    assert found.value == pytest.approx(wanted, rel=1e-6) and reduce in found.convention


def test_jsd_is_scipys_squared():
    a, b = (torch.tanh(0.5 * normal(20 * 30, 3, s).reshape(20, 30, 3)) for s in (0, 1))
    edges = [np.linspace(-1, 1, 9)] * 3
    p, q = (np.histogramdd(x.reshape(-1, 3).numpy(), edges)[0].ravel() for x in (a, b))
    wanted = scipy.spatial.distance.jensenshannon(p, q, base=2) ** 2
    assert metrics.jsd(a, b, cells=8).value == pytest.approx(wanted, rel=1e-6)


def test_clouds_are_matched_by_their_chamfer_distance():
    """Five shapes; the generated are copies of three of them, so 3/5 are covered and the matching is by those."""
    shapes = torch.stack([normal(40, 3, s, mean=3.0 * s, std=0.2) for s in range(5)])
    copies = shapes[[0, 1, 1, 4]] + 1e-3
    assert metrics.cloud_coverage(copies, shapes).value == pytest.approx(3 / 5)
    near_one = metrics.cloud_coverage(shapes[[0, 1]], shapes[[0, 4]])
    assert near_one.value == 0.5, "both generated are nearest to the first reference; the second is nearest to neither"
    pair = [metrics.chamfer(shapes[k], shapes[2], reduce="mean").value for k in (0, 1, 4)]
    other = [metrics.chamfer(shapes[k], shapes[3], reduce="mean").value for k in (0, 1, 4)]
    wanted = (min(pair) + min(other)) / 5
    assert metrics.minimum_matching(copies, shapes).value == pytest.approx(wanted, rel=1e-3)
    assert metrics.minimum_matching(shapes, shapes).value == 0


def test_the_classifier_score_is_torchmetrics_inception_score():
    class Same(torch.nn.Module):
        def forward(self, x):
            return x[:, :, 0, 0]

    from torchmetrics.image.inception import InceptionScore

    scores = 3 * normal(200, 5, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = InceptionScore(feature=Same(), splits=1)
    theirs.update(scores[:, :, None, None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs.compute()[0].item()
    assert metrics.classifier_score(scores.softmax(1), classifier="c").value == pytest.approx(wanted, rel=1e-6)


def test_the_classifier_score_runs_from_one_to_the_number_of_classes():
    sure = torch.eye(8).repeat(20, 1)
    assert metrics.classifier_score(sure, classifier="c").value == pytest.approx(8)
    assert metrics.classifier_score(sure[:1].repeat(160, 1), classifier="c").value == pytest.approx(1)
    half = 0.5 * (sure + sure.roll(1, 1))
    assert metrics.classifier_score(half, classifier="c").value == pytest.approx(4)


def test_the_energy_distance_of_gaussians_is_known():
    """In one dimension E|N(m, s^2)| is scipy's folded normal mean."""

    def folded(m, s):
        return scipy.stats.foldnorm.mean(abs(m) / s, scale=s)

    wanted = 2 * folded(0.7, math.hypot(1, 1.5)) - folded(0, math.sqrt(2)) - folded(0, 1.5 * math.sqrt(2))
    found = metrics.energy_distance(normal(4000, 1, 0, 0.7, 1.5), normal(4000, 1, 1), **SAID)
    assert found.low < wanted < found.high and found.high - found.low < 0.1


def test_the_kernel_distances_of_gaussians_are_known():
    a, b = normal(4000, 1, 0, 0.5, 1.2), normal(4000, 1, 1)
    h = 0.8

    def gauss(mean, variance):  # E exp(-d^2 / 2 h^2) for d ~ N(mean, variance)
        return h / math.sqrt(h * h + variance) * math.exp(-mean * mean / (2 * (h * h + variance)))

    wanted = gauss(0, 2 * 1.44) + gauss(0, 2) - 2 * gauss(0.5, 2.44)
    found = metrics.mmd(a, b, bandwidth=h, **SAID)
    assert found.low < wanted < found.high and found.high - found.low < 0.02

    def cubic(x, y):  # E (x y + 1)^3 from the moments of independent x and y
        return 1 + 3 * x[0] * y[0] + 3 * x[1] * y[1] + x[2] * y[2]

    p, q = (0.5, 0.25 + 1.44, 0.125 + 3 * 0.5 * 1.44), (0.0, 1.0, 0.0)
    wanted = cubic(p, p) + cubic(q, q) - 2 * cubic(p, q)
    found = metrics.kid(a, b, **SAID)
    assert found.low < wanted < found.high and found.high - found.low < 4


def test_w2_of_gaussians_is_known():
    """W2^2 of N(m, A) and N(0, I) with commuting A; sliced, it is the mean over directions: |m|^2 / D for a shift."""
    shift = torch.tensor([3.0, 0.0, 0.0, 4.0], dtype=torch.float64)
    b = normal(250, 4, 1)
    assert metrics.wasserstein(b + shift, b, **SAID).value == pytest.approx(5, rel=1e-9)
    assert metrics.wasserstein(2 * b, b, **SAID).value == pytest.approx(
        b.square().sum(1).mean().sqrt().item(), rel=1e-9
    )
    sliced = metrics.sliced_wasserstein(normal(2000, 4, 0) + shift, normal(2000, 4, 1), directions=128, **SAID)
    assert sliced.value == pytest.approx(5 / 2, rel=0.1)
    scaled = metrics.sliced_wasserstein(2 * normal(2000, 4, 0), normal(2000, 4, 1), directions=64, **SAID)
    assert scaled.value == pytest.approx(1, rel=0.03)


def test_frechet_of_gaussians_is_known():
    a, b = normal(6000, 3, 0, 1.0, 2.0), normal(6000, 3, 1)
    found = metrics.frechet(a, b, **SAID)
    assert found.value == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.05) and found.low < 6 < found.high


def test_unseen_real_data_has_the_levels_that_are_known():
    """Nothing to find: unbiased estimates include 0, density is about 1, coverage 1 - 2^-5."""
    a, b = normal(1500, 3, 0), normal(1500, 3, 1)
    for measure in (metrics.kid, metrics.mmd, metrics.energy_distance):
        found = measure(a, b, **SAID)
        assert found.low < 0 < found.high, found
        assert measure(a, b, **SAID).estimator == "U statistic, unbiased"
    assert metrics.density(a, b, **SAID).value == pytest.approx(1, abs=0.06)
    assert metrics.coverage(a, b, **SAID).value == pytest.approx(1 - 2**-5, abs=0.015)


def test_the_course_s_floor_of_the_swiss_roll():
    """LABS 10.1: two samples of 2,048 are 0.374 +- 0.028 apart, N(0, I) about 2,140."""
    real, fresh = (toys.swiss_roll(2048, seed)["x"] for seed in (0, 1))
    assert metrics.chamfer(fresh, real, reduce="sum").value == pytest.approx(0.374, abs=3.5 * 0.028)
    assert metrics.chamfer(noise((2048, 2), 5), real, reduce="sum").value == pytest.approx(2140, abs=4 * 77)
    blurred = fresh + 0.1 * noise((2048, 2), 6)
    assert metrics.chamfer(blurred, real, reduce="sum").value == pytest.approx(22.8, rel=0.1)


@pytest.mark.slow
def test_the_course_s_levels_of_w2():
    """LABS 10.1: W2 of 2,048 points is 0.18 to 0.31 for real data and 1.635 for N(0, I)."""
    real, fresh = (toys.swiss_roll(2048, seed)["x"] for seed in (0, 1))
    assert 0.17 < metrics.wasserstein(fresh, real, **SAID).value < 0.33
    assert metrics.wasserstein(noise((2048, 2), 5), real, **SAID).value == pytest.approx(1.635, abs=0.15)


WORSE = {
    "kid": lambda a, b: metrics.kid(a, b, **SAID),
    "mmd": lambda a, b: metrics.mmd(a, b, **SAID),
    "energy": lambda a, b: metrics.energy_distance(a, b, **SAID),
    "sliced": lambda a, b: metrics.sliced_wasserstein(a, b, directions=64, **SAID),
    "w2": lambda a, b: metrics.wasserstein(a, b, **SAID),
    "frechet": lambda a, b: metrics.frechet(a, b, **SAID),
    "density": lambda a, b: metrics.density(a, b, **SAID),
    "coverage": lambda a, b: metrics.coverage(a, b, **SAID),
    "precision": lambda a, b: metrics.precision(a, b, **SAID),
    "recall": lambda a, b: metrics.recall(a, b, **SAID),
    "chamfer": lambda a, b: metrics.chamfer(a, b, reduce="mean"),
}
HIGHER = ("density", "coverage", "precision", "recall")


@pytest.mark.parametrize("name", WORSE)
def test_a_result_says_how_it_was_made_and_knows_worse_from_better(name):
    a, b = normal(300, 3, 0), normal(300, 3, 1)
    good, bad = WORSE[name](a, b), WORSE[name](a + 1.5, b)
    assert (good.value > bad.value) == (name in HIGHER) and (good.low > bad.high) == (name in HIGHER)
    assert good.n == 300 and good.low <= good.value <= good.high and good.low < good.high
    written = good.to_json()
    assert "interval" in written["how"] and written["interval"] == [good.low, good.high]
    assert name == "chamfer" or written["features"] == "noise"
    assert WORSE[name](a, b) == good, "the same numbers again"
    with pytest.raises(ValueError, match="needs"):
        WORSE[name](a[:1], b[:1])


@pytest.mark.parametrize("name", ["energy", "mmd", "kid", "sliced", "w2", "frechet"])
def test_the_interval_covers_the_expectation_at_this_n(name):
    """Of 60 repetitions with other samples, at least 50 intervals hold their mean (95 % would be 57)."""
    measure = {"mmd": lambda a, b: metrics.mmd(a, b, bandwidth=1.0, **SAID)}.get(name, WORSE[name])
    results = [measure(normal(80, 2, 2 * s, 0.6, 1.3), normal(80, 2, 2 * s + 1)) for s in range(60)]
    centre = np.mean([r.value for r in results])
    inside = sum(r.low < centre < r.high for r in results)
    assert inside >= 50, inside
    widths, spread = np.mean([r.high - r.low for r in results]), np.std([r.value for r in results])
    assert widths < 1.6 * 2 * 1.96 * spread, "and they are not wide for nothing"


def test_crps_is_torchmetrics_and_that_of_a_gaussian_is_known():
    from torchmetrics.functional.regression import continuous_ranked_probability_score

    ensemble, y = normal(50, 9, 0), normal(50, 1, 1)[:, 0]
    theirs = continuous_ranked_probability_score(ensemble, y).item()
    pairs = (ensemble[:, :, None] - ensemble[:, None]).abs().sum((1, 2))
    plain = ((ensemble - y[:, None]).abs().mean(1) - pairs / (2 * 81)).mean().item()
    fair = ((ensemble - y[:, None]).abs().mean(1) - pairs / (2 * 72)).mean().item()
    assert metrics.crps(ensemble, y, fair=False).value == pytest.approx(plain, rel=1e-6)
    assert metrics.crps(ensemble, y).value == pytest.approx(fair, rel=1e-6)
    assert theirs == pytest.approx(plain, rel=1e-6) or theirs == pytest.approx(fair, rel=1e-6)
    at, density, below = 0.8, scipy.stats.norm.pdf(0.8), scipy.stats.norm.cdf(0.8)
    wanted = at * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi)
    found = metrics.crps(normal(4000, 5, 3), torch.full((4000,), at))
    assert found.low < wanted < found.high and found.high - found.low < 0.04
    biased = metrics.crps(normal(4000, 5, 3), torch.full((4000,), at), fair=False)
    assert biased.low > wanted, "without fairness, few members score worse"
    assert metrics.crps(y[:, None], y + 0.3, fair=False).value == pytest.approx(0.3)
    field = metrics.crps(ensemble.reshape(10, 5, 9).transpose(1, 2), y.reshape(10, 5))
    assert field.value == pytest.approx(fair, rel=1e-6) and field.n == 10


def test_what_cannot_be_measured_is_refused():
    a, b = two()
    for call, message in (
        (lambda: metrics.wasserstein(a, b, **SAID), "as many generated as real samples, got 400 and 300"),
        (lambda: metrics.wasserstein(a, a, p=3, **SAID), "p must be 1 or 2, got 3"),
        (lambda: metrics.kid(a, b[:, :5], **SAID), r"got \(400, 6\) and \(300, 5\)"),
        (lambda: metrics.kid(a, b * float("nan"), **SAID), "needs finite samples"),
        (lambda: metrics.mmd(a, b, bandwidth=0.0, **SAID), "above 0, got 0"),
        (lambda: metrics.chamfer(a, b, reduce="max"), "'sum' or 'mean', .* got 'max'"),
        (lambda: metrics.classifier_score(torch.eye(3), classifier="c"), "at least 30 samples, got 3"),
        (lambda: metrics.classifier_score(a, classifier="c"), "softmax"),
        (lambda: metrics.jsd(a.reshape(40, 20, 3), b.reshape(30, 20, 3)), r"in \[-1, 1\]"),
        (lambda: metrics.crps(a[:, :1], b[:, 0]), r"\(N, M, ...\) and \(N, ...\)"),
        (lambda: metrics.crps(a[:, :1], a[:, 0]), "at least 2 members, got 1"),
        (lambda: metrics.density(a, b, k=0, **SAID), "by 0 neighbours"),
        (lambda: metrics.mean(a[:1, 0], "one"), "at least 2 values, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
