"""What each technique promises, and the laws of reduction and invariance for all of them."""

import pytest
import torch

import suffuse as sf
from suffuse import guidance, samplers, schedules
from suffuse.denoise import call, denoiser, fresh
from suffuse.nets import DiT, attend, sites, tapped

from .worlds import F64, LABELS, MODEL, NEG, POS, READER, TECHNIQUES, WORLD, Exact, network

X = sf.noise((6, 1, 8, 8), seed=3)
EVERY = pytest.mark.parametrize("name", TECHNIQUES)
ONE, ALL = WORLD.given(label=1), WORLD
POINTS = sf.noise((7, 2), seed=5, dtype=F64)
OFF = {
    "guide": guidance.guide(POS, NEG, 1.0),
    "apg": guidance.apg(POS, NEG, 1.0),
    "cfg_zero": guidance.cfg_zero(POS, NEG, 1.0),
    "rescale": guidance.rescale(guidance.guide(POS, NEG, 1.0), 0.7),
    "rescale by 0": guidance.rescale(guidance.guide(POS, NEG, 1.0), 0.0),
    "threshold": guidance.threshold(POS, 100.0, limit=1e3),
    "interval": guidance.interval(guidance.apg(POS, NEG, 4.0), POS, between=(0.9, 0.9)),
    "interval in logsnr": guidance.guide(POS, NEG, 3.0, logsnr=(8.0, 9.0)),
    "pag": guidance.pag(POS, 1.0),
    "pag at other times": guidance.pag(POS, 3.0, between=(0.9, 0.95)),
    "pag at other noise": guidance.pag(POS, 3.0, logsnr=(8.0, 9.0)),
    "pag nowhere": guidance.pag(POS, 4.0, where=lambda site: False),
    "perturbed": guidance.perturbed(POS, where=lambda site: False),
    "classifier": guidance.classifier(POS, READER, 2, 0.0),
    "compose": guidance.compose(POS, (MODEL.given(label=2), 0.0)),
}


def test_every_technique_is_tried():
    functions = set(guidance.__all__) - {"Guided", "NoisyClassifier", "resample", "scale", "steer"}
    assert functions <= set(TECHNIQUES) and functions <= set(OFF)


@pytest.mark.parametrize("name", OFF)
def test_what_is_switched_off_is_the_base(name):
    for t in (0.3, 0.6, torch.linspace(0.2, 0.7, 6)):
        got, want = call(OFF[name], X, t), POS(X, t)
        exact = {} if name not in ("threshold", "pag nowhere") and not isinstance(t, torch.Tensor) else {"atol": 1e-5}
        for quantity in ("x0", "eps"):
            a, b = getattr(got, quantity), getattr(want, quantity)
            if exact:
                torch.testing.assert_close(a, b, rtol=1e-5, **exact)
            else:
                assert torch.equal(a, b), quantity


@EVERY
def test_it_changes_something_and_x0_and_eps_belong_together(name):
    got = fresh(TECHNIQUES[name])(X, 0.5)
    assert (got.x0 - POS(X, 0.5).x0).flatten(1).abs().amax(1).min() > 1e-3
    torch.testing.assert_close(0.5 * got.x0 + 0.5 * got.eps, X, rtol=0, atol=2e-4)


@EVERY
def test_a_time_for_each_row_is_the_same_time_for_all(name):
    for t in (0.2, 0.5, 0.95):
        one, many = (fresh(TECHNIQUES[name])(X, time) for time in (t, torch.full((6,), t)))
        scale = one.x0.abs().max().item()
        torch.testing.assert_close(one.x0, many.x0, rtol=0, atol=2e-4 * scale)
        torch.testing.assert_close(one.eps, many.eps, rtol=0, atol=2e-4 * scale)


@EVERY
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    guided = TECHNIQUES[name]
    together = sf.sample(guided, X, steps=6)
    assert together.isfinite().all()
    for i in (0, 5):
        alone = sf.sample(guided.rows(slice(i, i + 1)), X[i : i + 1], steps=6)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3 * together[i].abs().max().item())


@EVERY
def test_a_second_run_is_the_first_again(name):
    guided = TECHNIQUES[name]
    assert torch.equal(sf.sample(guided, X, steps=4), sf.sample(guided, X, steps=4))


@pytest.mark.parametrize("rule", [samplers.heun, samplers.ddim(eta=1.0), samplers.unipc], ids=repr)
def test_all_at_once_runs_with_any_sampler_and_rows_may_be_taken(rule):
    guided, index = TECHNIQUES["all at once"], torch.tensor([4, 0])
    whole = sf.sample(guided, X, sampler=rule, steps=5, seed=1)
    assert whole.isfinite().all()
    for step in sf.run(guided, X, sampler=rule, steps=5, seed=1):
        if step.k == 1 and not rule.stochastic:
            step.take(index)
        out = step.x
    expected = whole if rule.stochastic else whole[index]
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


def test_the_tree_prints_with_its_numbers():
    text = repr(TECHNIQUES["all at once"])
    for word in ("threshold(", "rescale(", "phi=0.7", "apg(", "norm=inf", "classifier(", "percentile=99.5", "s=2.0"):
        assert word in text, text


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5, -0.7])
def test_both_conventions_say_the_same_guidance(w):
    """Ho & Salimans: (1 + w) pos - w neg, 0 is off."""
    got = guidance.guide(ONE, ALL, guidance.scale(w, of="ho"))(POINTS, 0.4).eps
    p, n = ONE(POINTS, 0.4).eps, ALL(POINTS, 0.4).eps
    torch.testing.assert_close(got, (1 + w) * p - w * n, rtol=1e-10, atol=1e-10)
    assert guidance.scale(guidance.scale(w, of="ho"), of="imagen", to="ho") == pytest.approx(w)


def test_an_interval_in_logsnr_is_the_interval_in_time_on_every_schedule():
    for schedule in (schedules.Linear(), schedules.VP(), schedules.Cosine(), schedules.Linear().shift(3.0)):
        pos, neg = ONE.on(schedule), ALL.on(schedule)
        guided = guidance.guide(pos, neg, 3.0, logsnr=(-1.0, 2.0))
        wrapped = guidance.interval(guidance.guide(pos, neg, 3.0), pos, logsnr=(-1.0, 2.0))
        for logsnr in (-4.0, -1.01, -0.99, 0.5, 1.99, 2.01, 5.0):
            t = schedule.time(logsnr)
            for d in (guided, wrapped):
                acts = not torch.equal(d(POINTS, t).x0, pos(POINTS, t).x0)
                assert acts == (-1.0 < logsnr < 2.0), (schedule, logsnr)
    half = guidance.guide(ONE, ALL, 3.0, logsnr=(float("-inf"), 0.0))
    assert [torch.equal(half(POINTS, t).x0, ONE(POINTS, t).x0) for t in (1.0, 0.6, 0.4)] == [False, False, True]


def test_outside_its_interval_only_the_base_is_asked():
    asked = []

    def counted(d, name):
        return denoiser(lambda x, t, to, part: (asked.append(name), part(x, t))[1], parts=[d])

    limited = guidance.interval(counted(ONE, "guided"), counted(ALL, "base"), between=(0.2, 0.6))
    for t in (0.1, 0.4, 0.9):
        limited(POINTS, t)
    assert asked == ["base", "guided", "base"]
    mixed = limited(POINTS, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.2, 0.6], dtype=F64))
    for i, (t, inner) in enumerate(zip((0.1, 0.3, 0.5, 0.7, 0.9, 0.2, 0.6), (0, 1, 1, 0, 0, 1, 1), strict=True)):
        want = (ONE if inner else ALL)(POINTS[i : i + 1], t)
        torch.testing.assert_close(mixed.x0[i], want.x0[0])
        torch.testing.assert_close(mixed.eps[i], want.eps[0])


def test_projection_leaves_no_push_along_x0_and_all_of_it_is_cfg():
    pos, neg, w = ONE(POINTS, 0.5).x0, ALL(POINTS, 0.5).x0, 4.0
    plain = guidance.guide(ONE, ALL, w)(POINTS, 0.5).x0
    push = guidance.apg(ONE, ALL, w, eta=0.0, beta=0.0)(POINTS, 0.5).x0 - pos
    assert (push * pos).sum(1).abs().max() < 1e-10
    residue = (plain - pos - push) - ((plain - pos - push) * pos).sum(1, keepdim=True) / pos.square().sum(
        1, keepdim=True
    ) * pos
    assert residue.abs().max() < 1e-10, "what is left out lies along x0"
    whole = guidance.apg(ONE, ALL, w, eta=1.0, beta=0.0)(POINTS, 0.5).x0
    torch.testing.assert_close(whole, plain, rtol=1e-10, atol=1e-10)
    short = guidance.apg(ONE, ALL, w, eta=1.0, beta=0.0, norm=0.1)(POINTS, 0.5).x0 - pos
    length, free = short.norm(dim=1), (plain - pos).norm(dim=1)
    torch.testing.assert_close(length, free.clamp(max=0.1 * (w - 1)), rtol=1e-9, atol=1e-12)
    assert (pos - neg).norm(dim=1).min() < 0.1 < (pos - neg).norm(dim=1).max(), "some are short of the limit"


def test_momentum_carries_the_last_push_of_each_row_and_is_renewed():
    guided = guidance.apg(ONE, ALL, 2.0, eta=1.0, beta=-0.5).fresh()
    first, second, third = ((ONE(POINTS, t).x0 - ALL(POINTS, t).x0) for t in (0.6, 0.5, 0.4))
    torch.testing.assert_close(guided(POINTS, 0.6).x0, ONE(POINTS, 0.6).x0 + first)
    index = torch.tensor([3, 3, 0])
    taken = guided.rows(index)
    torch.testing.assert_close(taken(POINTS[index], 0.5).x0, (ONE(POINTS, 0.5).x0 + second - 0.5 * first)[index])
    torch.testing.assert_close(guided.fresh()(POINTS, 0.5).x0, ONE(POINTS, 0.5).x0 + second)
    last = (third - 0.5 * (second - 0.5 * first))[index]  # what is carried carries what came before
    torch.testing.assert_close(taken(POINTS[index], 0.4).x0, ONE(POINTS[index], 0.4).x0 + last)


def test_cfg_zero_does_not_care_how_large_the_negatives_velocity_is():
    """And where the two velocities are parallel nothing is pushed at all."""
    schedule = schedules.Linear()

    def moving(d, factor):
        def fn(x, t, to, part):
            p = part(x, t)
            u = factor * (p.eps - p.x0)
            return sf.Prediction(x, 1 - t, t, x0=x - t * u, eps=x + (1 - t) * u)

        return denoiser(fn, parts=[d])

    assert WORLD.schedule == schedule
    a, b = (guidance.cfg_zero(ONE, moving(ALL, c), 3.0)(POINTS, 0.6) for c in (1.0, 0.3))
    torch.testing.assert_close(a.x0, b.x0, rtol=1e-9, atol=1e-9)
    assert (a.x0 - guidance.guide(ONE, ALL, 3.0)(POINTS, 0.6).x0).abs().max() > 1e-2
    still = guidance.cfg_zero(ONE, moving(ONE, 0.3), 5.0)(POINTS, 0.6)
    torch.testing.assert_close(still.x0, ONE(POINTS, 0.6).x0, rtol=1e-9, atol=1e-9)


def test_zero_init_leaves_the_state_where_it_is():
    guided = guidance.cfg_zero(ONE, ALL, 3.0, zero_init=0.3)
    moved = []
    x = POINTS
    for step in sf.run(guided, POINTS, sampler=samplers.ddim, grid=[1.0, 0.9, 0.75, 0.6, 0.4, 0.0]):
        moved.append(bool((step.x - x).abs().max() > 1e-9))
        x = step.x
    assert moved == [False, False, False, True, True]


@pytest.mark.parametrize("of", ["v", "x0", "velocity"])
def test_rescaling_gives_the_positives_spread(of):
    guided = guidance.guide(POS, NEG, 6.0)
    row = sf.parameterize.named(of).row(MODEL.schedule, 0.6, 0.4, 0.6)

    def spread(p):
        return (row[0] * p.x0 + row[1] * p.eps).flatten(1).std(1)

    pos, plain = spread(POS(X, 0.6)), spread(guided(X, 0.6))
    assert (plain / pos - 1).abs().max() > 0.02
    torch.testing.assert_close(spread(guidance.rescale(guided, 1.0, of=of)(X, 0.6)), pos, rtol=1e-4, atol=0)
    half = spread(guidance.rescale(guided, 0.5, of=of)(X, 0.6))
    torch.testing.assert_close(half, (pos + plain) / 2, rtol=1e-4, atol=0)


def test_rescaled_and_thresholded_predictions_still_know_their_negative():
    """So CFG++ may run them."""
    guided = guidance.threshold(guidance.rescale(guidance.guide(POS, NEG, 0.6)))
    p = guided(X, 0.5)
    torch.testing.assert_close(p.negative.eps, NEG(X, 0.5).eps, rtol=1e-4, atol=1e-4)
    assert sf.sample(guided, X, sampler=samplers.cfgpp, steps=4).isfinite().all()


def test_thresholding_by_percentile_and_by_clipping():
    far = denoiser(lambda x, t, to, part: sf.Prediction(x, 1 - t, t, x0=part(x, t).x0 * 5), parts=[POS])
    plain = far(X, 0.5).x0
    x0 = guidance.threshold(far, 80.0)(X, 0.5).x0
    assert x0.abs().max() <= 1 + 1e-6
    beyond = (x0.abs() > 1 - 1e-5).flatten(1).double().mean(1)
    assert (beyond > 0.15).all() and (beyond < 0.25).all(), "a fifth of each sample lies at the limit"
    inner = x0.abs() < 0.99
    ratio = (plain / x0)[inner]
    assert (ratio > 1).all() and x0[inner].sign().equal(plain[inner].sign())
    per_row = [(plain / x0)[i][inner[i]] for i in range(6)]
    assert all(r.std() / r.mean() < 1e-3 for r in per_row), "the rest is scaled alike, row by row"
    assert torch.equal(guidance.threshold(far, None)(X, 0.5).x0, plain.clamp(-1, 1))
    small = guidance.threshold(ONE, 99.0, limit=50.0)(POINTS, 0.5).x0
    assert torch.equal(small, ONE(POINTS, 0.5).x0), "within the limit nothing is scaled up"


def test_a_perturbed_network_sees_each_patch_alone_where_told():
    model = network()
    changed = X.clone()
    changed[:, :, -1, -1] += 1
    everywhere, middle = guidance.perturbed(model, lambda site: True), guidance.perturbed(model)
    moved = (everywhere(changed, 0.5).x0 - everywhere(X, 0.5).x0)[0, 0].abs() > 0
    assert moved.nonzero().tolist() == [[6, 6], [6, 7], [7, 6], [7, 7]]
    assert [s.name for s in sites(model.net)][1] in middle.net.names and len(middle.net.names) == 1
    assert (middle(changed, 0.5).x0 - middle(X, 0.5).x0)[0, 0].abs().min() > 0
    assert all(site.tap is None for site in sites(model.net)), "the network itself is left as it was"
    before = everywhere(X, 0.5).x0
    with torch.no_grad():
        model.net.out.bias.add_(1)
    assert (everywhere(X, 0.5).x0 - before).abs().min() > 0.1, "one set of weights"


def test_perturbing_leaves_other_taps_at_work():
    model = network()
    third = sites(model.net)[2].name
    alone = guidance.perturbed(model, lambda site: site.name != third)
    plain = alone(X, 0.5).x0

    def uniform(site, q, k, v, mask):
        return attend(q * 0, k, v, mask)

    with tapped(model.net, uniform):
        other = alone(X, 0.5).x0
    assert (plain - other).abs().max() > 1e-3
    with tapped(model.net, lambda site, q, k, v, mask: v if site.name != third else attend(q * 0, k, v, mask)):
        torch.testing.assert_close(model(X, 0.5).x0, other)


def test_perturbed_attention_guidance_is_guidance_away_from_it():
    weaker = guidance.perturbed(POS)
    p, n = POS(X, 0.5).x0, weaker(X, 0.5).x0
    torch.testing.assert_close(guidance.pag(POS, 3.0)(X, 0.5).x0, n + 3.0 * (p - n), rtol=1e-4, atol=1e-4)
    guided = guidance.pag(POS, 3.0, where=lambda site: True, between=(0.4, 0.6))
    n = guidance.perturbed(POS, lambda site: True)(X, 0.5).x0
    torch.testing.assert_close(guided(X, 0.5).x0, n + 3.0 * (p - n), rtol=1e-4, atol=1e-4)
    assert torch.equal(guided(X, 0.3).x0, POS(X, 0.3).x0)


def test_composition_of_one_term_is_guidance_and_all_terms_are_one_batch():
    a = guidance.compose(ALL, (ONE, 2.5))(POINTS, 0.4).x0
    torch.testing.assert_close(a, guidance.guide(ONE, ALL, 2.5)(POINTS, 0.4).x0, rtol=1e-10, atol=1e-10)
    batches = []
    hook = MODEL.net.register_forward_pre_hook(lambda net, args: batches.append(len(args[0])))
    guidance.compose(MODEL, (POS, 2.0), (MODEL.given(label=7), -1.0), (MODEL.given(label=1), 0.0))(X, 0.5)
    hook.remove()
    assert batches == [18]


def test_a_classifier_is_put_in_eval_mode_for_a_run():
    net = DiT(1, patch=2, width=16, depth=1, heads=2, dropout=0.9, out_channels=10)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    judge = guidance.NoisyClassifier(net, MODEL.schedule)
    judge.train()
    guided = guidance.classifier(MODEL, judge, LABELS, 5.0)
    assert torch.equal(sf.sample(guided, X, steps=3), sf.sample(guided, X, steps=3))
    assert judge.training and net.training
    assert judge(X, 0.5).shape == (6, 10)


def test_a_noisy_classifier_sees_data_of_one_size_on_every_schedule():
    seen = []
    for schedule in (schedules.VE(), schedules.VP()):
        judge = guidance.NoisyClassifier(lambda x, t: (seen.append(x.std().item()), x)[1], schedule)
        for t in (0.3, 0.9):
            alpha, sigma = schedule(t)
            judge(alpha * POINTS + sigma * sf.noise((7, 2), 8, dtype=F64), t)
    assert max(seen) < 1.6 and min(seen) > 0.6


def test_steering_by_nothing_is_sampling_and_groups_do_not_know_each_other():
    noise = sf.noise((24, 2), seed=1, dtype=F64)

    def reward(x0):
        return x0[:, 0]

    off = guidance.steer(WORLD, reward, noise, particles=1, lam=3.0, steps=10, seed=2)
    assert off.shape == (24, 2) and torch.equal(
        off, guidance.steer(WORLD, reward, noise, particles=1, steps=10, seed=2)
    )
    together = guidance.steer(WORLD, reward, noise, particles=8, lam=2.0, steps=10, seed=2)
    alone = guidance.steer(WORLD, reward, noise[8:16], particles=8, lam=2.0, steps=10, seed=2, first=8)
    torch.testing.assert_close(alone, together[8:16], rtol=0, atol=1e-11)
    told = WORLD.given(label=torch.tensor([0, 1, 0]).repeat_interleave(8))
    x = guidance.steer(told, lambda x0: 0 * x0[:, 0], noise, particles=8, steps=30, seed=2)
    read = Exact(WORLD)(x, 0.0).argmax(1).reshape(3, 8).double().mean(1)
    assert read[1] > 0.7 and max(read[0], read[2]) < 0.3, "each group keeps its condition"


def test_a_reward_is_asked_once_for_each_state():
    calls, evaluated = [], []

    def counted(x, t):
        evaluated.append(t)
        return WORLD(x, t)

    counted.schedule = WORLD.schedule
    noise = sf.noise((8, 2), seed=1, dtype=F64)
    guidance.steer(counted, lambda x0: (calls.append(1), x0[:, 0])[1], noise, particles=8, steps=10, seed=0)
    assert len(evaluated) == 10 and len(calls) == 11


def test_where_guidance_is_off_the_negative_is_the_positive():
    """So CFG++ renoises with it, as without guidance."""
    guided = guidance.guide(ONE, ALL, 3.0, between=(0.1, 0.4))
    for t in (0.5, torch.tensor([0.05, 0.2, 0.3, 0.5, 0.6, 0.7, 0.4], dtype=F64)):
        off = torch.tensor([True, False, False, True, True, True, False]) | (torch.as_tensor(t).ndim == 0)
        p, pos, neg = guided(POINTS, t), ONE(POINTS, t), ALL(POINTS, t)
        torch.testing.assert_close(p.negative.eps, torch.where(off[:, None], pos.eps, neg.eps))


def test_a_scale_as_a_tensor_is_never_off():
    """For CFG++ at 1 with a negative prompt."""
    guided = guidance.guide(POS, MODEL.given(label=2), torch.tensor(1.0))
    torch.testing.assert_close(guided(X, 0.5).negative.x0, MODEL.given(label=2)(X, 0.5).x0, rtol=1e-4, atol=1e-4)
