"""Few-step losses at the exact map: no gradient on average, no loss at all along the exact flow, exact ends."""

import functools

import pytest
import torch
from torch import nn

from suffuse import Denoiser, guide, losses, noise, parameterize, sample, samplers, schedules
from suffuse.losses import fewstep
from suffuse.nets import MLP, Label, Scalar

from .worlds import WORLD, C, M, exact

N = 20_000


def data(n=N, seed=0):
    return {"x": WORLD.sample(n, seed=seed)}


def z_scores(loss, n=N):
    """Of the mean gradient in three directions, one draw a row."""
    model = exact(n)
    torch.manual_seed(0)
    loss(model, data(n)).sum().backward()
    grad = model.net.theta.grad
    assert (grad != 0).any(0).all(), "every direction is felt"
    return grad.mean(0) / (grad.std(0) / n**0.5)


UNBIASED = {
    "meanflow": functools.partial(fewstep.meanflow, power=0.0, apart=0.5),
    "shortcut": functools.partial(fewstep.shortcut, share=0.5),
    "scm": functools.partial(fewstep.continuous_consistency, normalise=None),
    "consistency training": functools.partial(
        fewstep.consistency_training, gap=fewstep.ratio(0.999), huber=None, times=losses.logit_normal
    ),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_the_exact_map_has_no_expected_gradient(name):
    z = z_scores(UNBIASED[name])
    assert z.abs().max() < 4, z


def pull(loss, off):
    """The gradient in where the network believes the data to lie, which is `off` the truth, by row."""
    model = exact(N, m=M + off)
    model.net.m = torch.tensor(M + off, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    loss(model, data()).mean().backward()
    return model.net.m.grad.item(), model.net.theta.grad


@pytest.mark.parametrize("off", [-0.1, 0.1])
@pytest.mark.parametrize("name", UNBIASED)
def test_another_map_has_one_and_it_leads_back(name, off):
    """The same losses where the network's data lie elsewhere: what the z-test is able to see."""
    m, grad = pull(UNBIASED[name], off)
    assert (grad.mean(0) / (grad.std(0) / N**0.5)).abs().max() > 10
    assert m * off > 0, "downhill is towards the data"


def test_the_pull_of_consistency_does_not_fade_as_the_gap_closes():
    wide, narrow = (
        pull(functools.partial(fewstep.consistency_training, gap=fewstep.ratio(r), huber=None), 0.1)[0]
        for r in (0.9, 0.99)
    )
    assert narrow == pytest.approx(wide, rel=0.3)


FLOW = {
    "meanflow": functools.partial(fewstep.meanflow, apart=1.0, teacher=WORLD),
    "shortcut": functools.partial(fewstep.shortcut, share=0.5, levels=10, teacher=WORLD),
    "scm": functools.partial(fewstep.continuous_consistency, teacher=WORLD, normalise=None, data_std=0.7),
    "consistency distillation": functools.partial(
        fewstep.consistency_distillation, teacher=exact(), gap=fewstep.intervals(3), order=1, huber=None
    ),
    "consistency distillation, Heun": functools.partial(
        fewstep.consistency_distillation, teacher=WORLD, gap=fewstep.intervals(200), order=2, huber=None
    ),
    "progressive": functools.partial(fewstep.progressive, teacher=exact(), steps=2),
}


@pytest.mark.parametrize("name", FLOW)
def test_the_exact_map_has_no_loss_along_the_exact_flow(name):
    torch.manual_seed(0)
    with torch.no_grad():
        there = FLOW[name](exact(), data(2000)).mean()
        torch.manual_seed(0)
        off = FLOW[name](exact(m=M + 0.1), data(2000)).mean()
    approximate = {"shortcut": 1e-7, "consistency distillation, Heun": 1e-7}  # steps of 2^-10, and Heun's
    assert there < approximate.get(name, 1e-11), there  # times are float32
    assert off > max(1e-5, 1000 * there)


def test_heun_follows_the_teacher_more_closely_than_euler():
    loss = functools.partial(fewstep.consistency_distillation, teacher=WORLD, gap=fewstep.intervals(10), huber=None)
    found = {}
    for order in (1, 2):
        torch.manual_seed(0)
        with torch.no_grad():
            found[order] = loss(exact(), data(2000), order=order).mean().item()
    assert found[2] < found[1] / 20


def test_one_step_of_the_student_is_the_teachers_two_of_ddim():
    """A teacher whose steps are not exact: what it makes of noise in two steps, and no better."""

    def net(x, t):
        return x - sample(WORLD, x, sampler=samplers.ddim(), grid=[1.0, 0.5, 0.0])

    with torch.no_grad():
        assert fewstep.progressive(Denoiser(net, schedules.Linear()), data(500), teacher=WORLD, steps=1).max() < 1e-12
        assert fewstep.progressive(exact(), data(500), teacher=WORLD, steps=1).mean() > 1e-4


def test_a_halved_student_learns_every_step_of_its_grid_alike():
    asked = []

    def net(x, t):
        asked.append(t)
        return 0 * x

    fewstep.progressive(Denoiser(net, schedules.Linear()), data(400), teacher=WORLD, steps=4)
    times, rows = asked[0].unique(return_counts=True)
    assert times.tolist() == [0.25, 0.5, 0.75, 1] and rows.tolist() == [100] * 4


SCHEDULES = [schedules.Linear(), schedules.Cosine(), schedules.VP(), schedules.VE(sigma_max=10.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("predicts", ["velocity", "v", "eps", "edm"])
def test_a_consistency_model_is_the_identity_at_clean_data(schedule, predicts):
    if predicts == "velocity" and not isinstance(schedule, schedules.Linear | schedules.Cosine):
        pytest.skip("the velocity of this schedule is infinite or 0 at t = 0")
    net = MLP(3, width=16, depth=1)
    nn.init.normal_(net.out.weight)
    model, x = Denoiser(net, schedule, predicts), noise((8, 3), seed=0)
    exactly = {"rtol": 0, "atol": 0} if predicts in ("velocity", "v", "eps") else {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(model(x, torch.zeros(8)).x0, x, **exactly)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_map_is_exact_in_any_number_of_steps(steps):
    start = noise((500, 2), seed=1, dtype=torch.float64)
    x = sample(exact(), start, sampler=samplers.ddim(), steps=steps)
    torch.testing.assert_close(x, M + C**0.5 * start)
    again = sample(samplers.endpoint(exact()), start, sampler=samplers.consistency(), steps=steps, seed=0)
    spread = 4 / 500**0.5
    assert (again.mean(0) - M).abs().max() < spread * C**0.5 and (again.std(0) / C**0.5 - 1).abs().max() < spread


class TestReflow:
    def test_straightness_is_the_integral_along_the_exact_path(self):
        start = noise((2000, 2), seed=0, dtype=torch.float64)
        found = fewstep.straightness(WORLD, start, steps=400)
        t = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
        rate = (-(1 - t) * C + t) / ((1 - t) ** 2 * C + t**2) ** 0.5  # of the spread
        truth = start.square().sum(1) * ((1 - C**0.5) - rate).square().mean()
        torch.testing.assert_close(found, truth, rtol=0.02, atol=0)

    def test_pairs_are_the_ends_of_one_path_and_a_second_round_costs_no_more(self):
        start = noise((4000, 2), seed=0, dtype=torch.float64)
        pair = fewstep.pairs(WORLD, start, sampler=samplers.heun(), steps=60)
        torch.testing.assert_close(pair["x"], M + C**0.5 * start, rtol=0, atol=1e-3)
        independent = {"x": WORLD.sample(4000, seed=1), "eps": start}
        assert fewstep.transport_cost(pair).mean() < 0.5 * fewstep.transport_cost(independent).mean()

    def test_one_step_learns_the_jump_and_nothing_else(self):
        pair = fewstep.pairs(WORLD, noise((500, 2), seed=0, dtype=torch.float64), sampler=samplers.heun(), steps=200)
        with torch.no_grad():
            assert fewstep.one_step(Denoiser(_AtOne(), schedules.Linear()), pair).max() < 1e-7
            assert fewstep.one_step(Denoiser(_AtOne(0.1), schedules.Linear()), pair).min() > 1e-3


class _AtOne(nn.Module):
    """Right at t = 1, nonsense elsewhere."""

    def __init__(self, off=0.0):
        super().__init__()
        self.off = off

    def forward(self, x, t):
        return torch.where(t[:, None] == 1, (1 - C**0.5) * x - M + self.off, torch.full_like(x, 7.0))


class TestGuidance:
    """A teacher's guidance is taken over, once."""

    def teacher(self):
        torch.manual_seed(0)
        net = MLP(2, width=16, depth=1, conditions={"label": Label(3)})
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
        return Denoiser(net, schedules.Linear())

    def student(self, *names):
        torch.manual_seed(1)
        net = MLP(2, width=16, depth=1, conditions={"label": Label(3), **{name: Scalar() for name in names}})
        nn.init.normal_(net.out.weight)
        return Denoiser(net, schedules.Linear())

    batch = {"x": noise((32, 2), seed=0), "label": torch.arange(32) % 3}

    def test_latent_consistency_follows_the_guided_teacher_at_the_scale_it_is_told(self):
        teacher, student = self.teacher(), self.student("w")
        torch.manual_seed(0)
        found = fewstep.latent_consistency(student, self.batch, teacher=teacher, w=(2.0, 4.0), steps=10, skip=2)
        torch.manual_seed(0)
        scale = 2 + 2 * torch.rand(32)  # one a row
        guided = guide(teacher.given(label=self.batch["label"]), teacher, scale)
        told = self.batch | {"w": scale}
        same = functools.partial(fewstep.consistency_distillation, gap=fewstep.intervals(5), order=1)
        torch.testing.assert_close(found, same(student, told, teacher=guided))
        torch.manual_seed(0)
        torch.rand(32)
        plain = same(student, told, teacher=teacher)
        assert (found - plain).abs().mean() > 1e-3

    @pytest.mark.parametrize("w", [1.0, 3.0])
    def test_a_teacher_on_another_schedule_is_told_and_guided_as_on_its_own(self, w):
        """What an error says to do, teacher.on(schedule), loses nothing."""
        teacher, student = self.teacher(), self.student()
        x, told = self.batch["x"], student.given(label=self.batch["label"])
        here = fewstep.straight.believed(teacher, told, x, 0.5, w=w).x0
        there = fewstep.straight.believed(teacher.on(schedules.Linear()), told, x, 0.5, w=w).x0
        torch.testing.assert_close(there, here)

    def test_each_row_has_its_own_scale(self):
        teacher, student = self.teacher(), self.student()
        x, t, w = self.batch["x"], torch.full((32,), 0.5), torch.linspace(1, 5, 32)
        told = student.given(label=self.batch["label"])
        all_rows = fewstep.straight.believed(teacher, told, x, t, w=w).x0
        one = guide(teacher.given(label=self.batch["label"]), teacher, w[7].item())(x, 0.5).x0[7]
        torch.testing.assert_close(all_rows[7], one)


def test_annealed_moves_the_setting_with_the_rows_seen_and_keeps_count():
    seen = []

    def loss(model, batch, share):
        seen.append(share)
        return batch["x"][:, 0]

    annealed = fewstep.Annealed(loss, 40, lambda share: {"share": share})
    for _ in range(6):
        annealed(None, {"x": torch.zeros(10, 1)})
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1]
    again = fewstep.Annealed(loss, 40, lambda share: {"share": share})
    again.load_state_dict({"seen": torch.tensor(20)})
    again(None, {"x": torch.zeros(10, 1)})
    assert seen[-1] == 0.5


def test_annealed_counts_the_rows_of_all_processes_and_none_that_it_only_measures(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    seen = []
    annealed = fewstep.Annealed(lambda m, batch, share: seen.append(share), 80, lambda share: {"share": share})
    annealed(None, {"x": torch.zeros(10, 1)})
    annealed.eval()(None, {"x": torch.zeros(10, 1)})
    annealed.train()(None, {"x": torch.zeros(10, 1)})
    annealed(None, {"x": torch.zeros(10, 1)})
    assert seen == [0, 0.5, 0.5, 1]


class TestBudget:
    def test_it_counts_what_goes_through_the_network(self):
        model = TestGuidance().teacher()
        start = noise((6, 2), seed=0)
        with samplers.budget(model, 6) as spent:
            sample(model, start, sampler=samplers.heun(), steps=3)
        assert spent.nfe == samplers.heun().plan(model.schedule, [1, 2 / 3, 1 / 3, 0]).nfe == 5
        with samplers.budget(model, 6) as spent:
            sample(guide(model.given(label=1), model, 2.0), start, sampler=samplers.ddim(), steps=4)
        assert spent.calls == 4 and spent.nfe == 8

    def test_one_evaluation_too_many_is_stopped_and_nothing_is_left_behind(self):
        model, start = TestGuidance().teacher(), noise((6, 2), seed=0)
        over = pytest.raises(ValueError, match="over budget: evaluation 3 a sample, where 2 were allowed")
        with over, samplers.budget(model, 6, nfe=2):
            sample(model, start, sampler=samplers.ddim(), steps=3)
        with samplers.budget(model, 6, nfe=3):
            sample(model, start, sampler=samplers.ddim(), steps=3)

    def test_there_must_be_something_to_count(self):
        with pytest.raises(ValueError, match="nothing to count"), samplers.budget(WORLD, 6):
            pass


MULTISTEP = [samplers.dpmpp(order=2), samplers.heun(), samplers.consistency(), samplers.ddpm(), samplers.ddim(eta=0.5)]


@pytest.mark.parametrize("rule", MULTISTEP, ids=repr)
def test_a_two_time_network_refuses_plans_that_mix_its_answers(rule):
    start = noise((4, 2), seed=0, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"cannot run a two-time network, .* use sf.samplers.ddim\(\)"):
        sample(exact(), start, sampler=rule, steps=3, seed=0)
    with pytest.raises(ValueError, match="cannot run a two-time network"):
        sample(guide(exact(), exact(), 2.0), start, sampler=rule, steps=3, seed=0)
    assert sample(samplers.endpoint(exact()), start, sampler=rule, steps=3, seed=0).isfinite().all()


BATCH = data(4)
VP = Denoiser(MLP(2), schedules.VP(), "v")
PLAIN = Denoiser(MLP(2), schedules.Linear())
START = noise((4, 2), seed=0)
MISUSE = {
    "pairs off the line": (lambda: fewstep.pairs(VP, START), r"lives on VP\(.*use model.on\(sf.schedules.Linear"),
    "one step off the line": (lambda: fewstep.one_step(VP, BATCH), r"use model.on\(sf.schedules.Linear"),
    "straightness off the line": (lambda: fewstep.straightness(VP, START), r"use model.on\(sf.schedules.Linear"),
    "no pairs": (lambda: fewstep.one_step(PLAIN, BATCH), 'needs "eps" beside "x"'),
    "meanflow of one time": (lambda: fewstep.meanflow(PLAIN, BATCH), "meanflow trains a two-time network, MLP is not"),
    "shortcut of one time": (lambda: fewstep.shortcut(PLAIN, BATCH), "shortcut trains a two-time network"),
    "apart": (lambda: fewstep.meanflow(exact(), BATCH, apart=2.0), r"apart must be a share in \[0, 1\], got 2"),
    "share": (lambda: fewstep.shortcut(exact(), BATCH, share=-1.0), r"share must be in \[0, 1\]"),
    "no steps": (lambda: fewstep.progressive(PLAIN, BATCH, teacher=WORLD, steps=0), "steps must be at least 1, got 0"),
    "another schedule": (
        lambda: fewstep.progressive(PLAIN, BATCH, teacher=VP, steps=2),
        r"the teacher lives on VP\(.*, the student on Linear\(\): use teacher.on",
    ),
    "guided twice": (
        lambda: fewstep.progressive(PLAIN, BATCH, teacher=guide(PLAIN, PLAIN, 2.0), steps=2, w=3.0),
        "w would guide twice: guide",
    ),
    "a folded student guided": (
        lambda: guide(TestGuidance().student("w"), TestGuidance().student("w"), 2.0),
        r"guidance is folded into this model and would act twice: tell it the scale by .given\(w=",
    ),
    "guided twice, folded": (
        lambda: fewstep.latent_consistency(
            TestGuidance().student("w"), TestGuidance.batch, teacher=TestGuidance().student("w")
        ),
        "w would guide twice",
    ),
    "not told the scale": (
        lambda: fewstep.latent_consistency(PLAIN, BATCH, teacher=PLAIN),
        "MLP cannot be told the guidance",
    ),
    "empty range": (
        lambda: fewstep.latent_consistency(PLAIN, BATCH, teacher=PLAIN, w=(3.0, 1.0)),
        r"w must be a range \(low, high\)",
    ),
    "order": (
        lambda: fewstep.consistency_distillation(PLAIN, BATCH, teacher=WORLD, gap=fewstep.intervals(5), order=3),
        "order must be 1",
    ),
    "predicts x0": (
        lambda: fewstep.consistency_training(
            Denoiser(MLP(2), schedules.Linear(), parameterize.x0), BATCH, gap=fewstep.intervals(5)
        ),
        'a network that predicts "x0" is not by construction',
    ),
    "warmup": (lambda: fewstep.continuous_consistency(PLAIN, BATCH, warmup=2.0), r"warmup in \[0, 1\]"),
    "rows": (lambda: fewstep.Annealed(fewstep.meanflow, 0, dict), "rows must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, message = MISUSE[name]
    with pytest.raises(ValueError, match=message):
        act()
