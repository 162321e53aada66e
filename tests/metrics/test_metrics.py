"""Metrics: against scipy, against closed forms, in the right direction, and refusing what they cannot measure."""

import numpy as np
import pytest
import scipy.linalg
import torch

from suffuse import data, metrics, noise


def test_frechet_is_scipys():
    a, b = noise((300, 12), seed=0).double(), 0.3 + 1.4 * noise((200, 12), seed=1).double()
    ma, mb, ca, cb = a.mean(0).numpy(), b.mean(0).numpy(), np.cov(a.numpy().T), np.cov(b.numpy().T)
    cross = scipy.linalg.sqrtm(ca @ cb).real
    wanted = ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * cross)
    assert metrics.frechet(a, b, features="noise").value == pytest.approx(wanted, rel=1e-6)
    assert metrics.frechet(a, a, features="noise").value == pytest.approx(0, abs=1e-9)


def test_frechet_refuses_a_covariance_without_rank():
    with pytest.raises(
        ValueError, match="a covariance of 12 features needs more than 12 samples, the second set has 12"
    ):
        metrics.frechet_ratio(
            noise((30, 12), seed=0), noise((30, 12), seed=0), noise((12, 12), seed=1), features="noise"
        )
    with pytest.raises(ValueError, match="needs at least 26 samples of each, got 30 and 25"):
        metrics.frechet(noise((30, 12), seed=0), noise((25, 12), seed=1), features="noise")


def test_the_ratio_of_fresh_real_data_is_one_within_its_interval():
    real, held_out = noise((1000, 8), seed=0), noise((400, 8), seed=1)
    fresh = metrics.frechet_ratio(noise((1000, 8), seed=2), real, held_out, features="noise")
    assert fresh.low < 1 < fresh.high
    worse = metrics.frechet_ratio(1.3 * noise((1000, 8), seed=2), real, held_out, features="noise")
    assert worse.low > 1.5


def test_precision_falls_with_outliers_and_recall_with_missing_modes():
    real = torch.cat([noise((300, 2), seed=0), 10 + noise((300, 2), seed=1)])
    one_mode, far = noise((300, 2), seed=2), torch.cat([noise((150, 2), seed=3), 50 + noise((150, 2), seed=4)])
    assert metrics.precision(one_mode, real, features="x").value > 0.85
    assert metrics.recall(one_mode, real, features="x").value == pytest.approx(0.5, abs=0.07)
    assert metrics.precision(far, real, features="x").value == pytest.approx(0.5, abs=0.07)
    with pytest.raises(ValueError, match="needs more than 3 points, got 3"):
        metrics.precision(real, real[:3], features="x")


def test_memorised_is_one_for_copies_and_a_percent_for_unseen_data():
    train, held_out, fresh = (noise((600, 4), seed=s) for s in (0, 1, 2))
    assert metrics.memorised(train[:200] + 1e-4, train, held_out).value == 1.0
    assert metrics.memorised(fresh, train, held_out).value < 0.03


def test_a_share_has_wilsons_interval():
    m = metrics.proportion(0, 10, "none")
    assert (m.low, m.high) == pytest.approx((0.0, 0.2775), abs=1e-4)
    m = metrics.proportion(45, 50, "most")
    assert (m.low, m.high) == pytest.approx((0.7864, 0.9565), abs=1e-4)
    with pytest.raises(ValueError, match="got 11 of 10"):
        metrics.proportion(11, 10, "too many")


def test_the_interval_covers():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(500):
        m = metrics.proportion(int((torch.rand(80, generator=generator) < 0.9).sum()), 80, "")
        inside += m.low <= 0.9 <= m.high
    assert inside / 500 == pytest.approx(0.95, abs=0.03)


def test_a_classifier_reads_in_eval_mode_only():
    judge = metrics.Classifier(1, 8, 10)
    with pytest.raises(RuntimeError, match="eval mode"):
        judge.read(torch.zeros(1, 1, 8, 8))


def test_the_digits_are_split_without_overlap_and_with_every_class():
    train, test = data.digits("train"), data.digits("test")
    assert (len(train["x"]), len(test["x"])) == (1437, 360)
    assert train["x"].min() == -1 and train["x"].max() == 1
    for part, share in ((train, 0.8), (test, 0.2)):
        counts = torch.bincount(part["label"]) / (share * 179.7)
        assert (counts - 1).abs().max() < 0.06
    known = {tuple(x.flatten().tolist()) for x in train["x"]}
    assert not any(tuple(x.flatten().tolist()) in known for x in test["x"])
    with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
        data.digits("valid")
