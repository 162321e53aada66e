"""Law 8: a row does not know its batch; t as () is t as (B,); runs can be walked, steered, differentiated, compiled."""

import pytest
import torch

from suffuse import BrownianPath, Denoiser, denoiser, grids, guide, noise, oracle, run, sample, samplers, schedules
from suffuse.nets import DiT, Label

from .worlds import RULES, SCHEDULES, mixture_1d, world_for

WORLD = oracle.Mixture(torch.ones(6), torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)), 0.3)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_sample_does_not_depend_on_its_batch_mates(rule):
    x = noise((7, 3, 4), seed=1)
    together = sample(world_for(rule, WORLD), x, sampler=rule, steps=12, seed=2)
    for i in (0, 3, 6):
        alone = sample(world_for(rule, WORLD), x[i : i + 1], sampler=rule, steps=12, seed=2, first=i)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_time_as_a_number_is_time_as_a_row_each(schedule):
    world = WORLD.on(schedule)
    x = noise((5, 3, 4), seed=1)
    for t in (0.2, 0.7):
        a, b, c = world(x, t), world(x, torch.full((5,), t, dtype=torch.float64)), world(x, torch.tensor(t).double())
        torch.testing.assert_close(a.x0, b.x0, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.x0, c.x0, rtol=0, atol=1e-5)


def _network():
    net = DiT(1, patch=2, width=32, depth=2, heads=2, conditions={"label": Label(10)})
    torch.manual_seed(1)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return Denoiser(net, schedules.Linear(), "velocity")


def test_rows_of_a_network_with_conditions_and_guidance_are_independent():
    model, x = _network(), noise((6, 1, 8, 8), seed=0)
    labels = torch.arange(6)
    guided = guide(model.given(label=labels), model, torch.linspace(1.5, 3, 6))
    together = sample(guided, x, steps=10)
    for i in (0, 5):
        alone = sample(guided.rows(slice(i, i + 1)), x[i : i + 1], steps=10)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


def test_per_frame_times_broadcast_from_the_left():
    alpha, sigma = schedules.Linear()(torch.tensor([[0.1, 0.2], [0.3, 0.4]]), like=torch.zeros(2, 2, 5))
    assert alpha.shape == (2, 2, 1)
    torch.testing.assert_close(alpha + sigma, torch.ones(2, 2, 1))
    with pytest.raises(ValueError, match=r"times of shape \(3,\) do not fit"):
        schedules.Linear()(torch.zeros(3), like=torch.zeros(2, 5))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_walking_a_run_is_running_it(rule):
    x = noise((3, 3, 4), seed=1)
    whole = sample(world_for(rule, WORLD), x, sampler=rule, steps=6, seed=2)
    times, last = [], None
    for step in run(world_for(rule, WORLD), x, sampler=rule, steps=6, seed=2):
        times.append((step.t, step.s))
        last = step.x
    assert torch.equal(last, whole)
    assert len(times) == 6
    assert times[0][0] == 1.0 and times[-1][1] == 0.0
    assert all(b == c for (_, b), (c, _) in zip(times, times[1:], strict=False))


def test_a_state_that_is_set_is_what_the_run_goes_on_from():
    x = noise((3, 3, 4), seed=1)
    other = noise((3, 3, 4), seed=9)
    for step in run(WORLD, x, sampler=samplers.ddim, steps=6, grid=grids.logsnr):
        if step.k == 0:
            step.x = other
        out = step.x
    grid = grids.logsnr(WORLD.schedule, 6)
    direct = samplers.ddim.plan(WORLD.schedule, grid[1:])(WORLD, other)
    torch.testing.assert_close(out, direct)


@pytest.mark.parametrize("name", ["ddim(eta=0.0)", "dpmpp(order=3, weights='exact')", "heun()"])
def test_rows_can_be_taken_with_their_history_and_conditions(name):
    x = noise((4, 1, 8, 8), seed=1)
    labels, index = torch.tensor([1, 2, 3, 4]), torch.tensor([2, 2, 0, 1])
    model = _network().given(label=labels)
    whole = sample(model, x, sampler=RULES[name], steps=6)
    for step in run(model, x, sampler=RULES[name], steps=6):
        if step.k == 2:
            step.take(index)
        out = step.x
    torch.testing.assert_close(out, whole[index], rtol=0, atol=1e-5)


def test_a_run_can_jump_back_and_forth():
    """Time travel by hand with a stochastic sampler: on point data every state keeps its exact spread."""
    point = oracle.Gaussian(torch.zeros(1, dtype=torch.float64), 1e-12)
    x = noise((20000, 1), seed=1, dtype=torch.float64)
    grid = grids.logsnr(point.schedule, 5)
    visited, jumped = [], False
    for step in run(point, x, sampler=samplers.ddpm, grid=grid, seed=3):
        visited.append(step.k)
        sigma = point.schedule(step.s)[1]
        if step.s > 0.01:
            assert step.x.std().item() == pytest.approx(sigma, rel=0.03)
        if step.k == 3 and not jumped:
            jumped = True
            step.x = point.schedule(float(grid[1]))[1] * noise((20000, 1), seed=7, dtype=torch.float64)
            step.goto(1)
    assert visited == [0, 1, 2, 3, 1, 2, 3, 4]


def test_a_trajectory_can_be_collected():
    x = noise((3, 3, 4), seed=1)
    steps = list(run(WORLD, x, sampler=samplers.ddim, steps=4))
    assert len({step.x.sum().item() for step in steps}) == 4
    assert torch.equal(steps[-1].x, sample(WORLD, x, sampler=samplers.ddim, steps=4))
    with pytest.raises(ValueError, match="this step is over"):
        steps[0].x = x


def test_a_stochastic_run_may_change_its_number_of_rows():
    for step in run(WORLD, noise((4, 3, 4), seed=1), sampler=samplers.ddpm, steps=5, seed=0):
        if step.k == 1:
            step.take(torch.tensor([0, 0, 3]))
        out = step.x
    assert out.shape == (3, 3, 4)
    assert (out[0] - out[1]).abs().max() > 1e-3, "copies go on with noise of their own"


def test_starting_at_another_time_than_the_plan_is_refused():
    plan = samplers.ddim.plan(WORLD.schedule, [1.0, 0.5, 0.0])
    x = noise((2, 3, 4), seed=1)
    with pytest.raises(ValueError, match=r"begins at t=1, start asks for t=0.3"):
        sample(WORLD, x, sampler=plan, start=(x, 0.3))


@pytest.mark.parametrize("name", ["ddpm", "scaled-linear", "zero-snr"])
def test_grids_stay_where_a_discrete_network_was_trained(name):
    schedule = SCHEDULES[name]
    for spacing in (grids.logsnr, grids.karras):
        inner = spacing(schedule, 20)[:-1] * 1000 - 1
        assert inner.min() > -1e-6
    for spacing in (grids.leading, grids.linspace, grids.trailing, grids.logsnr, grids.karras, grids.uniform):
        late = spacing(schedule, 20, start=0.4)
        assert late[0] == 0.4 and late[-1] == 0 and (late.diff() < 0).all()


def test_prompts_of_several_lengths_are_one_forward():
    from suffuse.nets import Tokens

    net = DiT(1, patch=4, width=32, depth=1, heads=2, conditions={"text": Tokens(8, vocab=20)})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model, x = Denoiser(net.eval(), schedules.Linear()), noise((2, 1, 8, 8), seed=0)
    long, short = model.given(text=[[1, 2, 3, 4]]), model.given(text=[[5, 6]])
    batches = []
    hook = net.register_forward_pre_hook(lambda net, args: batches.append(len(args[0])))
    with torch.no_grad():
        for neg in (short, model):
            got = guide(long, neg, 3.0)(x, 0.5).x0
            torch.testing.assert_close(
                got, neg(x, 0.5).x0 + 3 * (long(x, 0.5).x0 - neg(x, 0.5).x0), rtol=1e-4, atol=1e-4
            )
    hook.remove()
    assert batches[0] == 4, "one batch of both"


def test_runs_that_interleave_leave_the_mode_alone():
    model, x = _network(), noise((1, 1, 8, 8), seed=0)
    model.net.train()
    a, b = run(model, x, steps=3), run(model, x, steps=3)
    next(a), next(b), next(a), next(b)
    assert model.net.training
    assert all(m.training for m in model.net.modules())


def test_times_and_weights_from_the_host_meet_data_elsewhere():
    x = torch.zeros(2, 3, device="meta")
    alpha, _ = schedules.Linear()(torch.tensor([0.1, 0.2]), like=x)
    assert alpha.device == x.device


def test_gradients_flow_only_when_asked():
    x = noise((2, 1), seed=0, dtype=torch.float64).requires_grad_()
    world = mixture_1d(schedules.Linear())
    assert not sample(world, x, steps=5).requires_grad

    def end(start):
        return sample(world, start, steps=5, grad=True).sum()

    (gradient,) = torch.autograd.grad(end(x), x)
    h = 1e-6
    numeric = torch.stack([(end(x + h * e) - end(x - h * e)) / (2 * h) for e in torch.eye(2)[:, :, None].double()])
    torch.testing.assert_close(gradient[:, 0], numeric.detach(), rtol=1e-6, atol=1e-8)


def test_the_whole_run_compiles_as_one_graph():
    model, x = _network(), noise((2, 1, 8, 8), seed=0)
    model.net.eval()
    plan = samplers.dpmpp(order=2).plan(model.schedule, grids.uniform(model.schedule, 3))
    model = model.given(label=torch.tensor([3, 5]))
    compiled = torch.compile(lambda y: plan(model, y), backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plan(model, x))


def test_modes_are_set_to_eval_and_given_back():
    model = _network()
    model.net.train()
    model.net.blocks[0].eval()
    modes = []
    hook = model.net.register_forward_pre_hook(lambda net, args: modes.append(net.training))
    sample(guide(model.given(label=1), model, 2.0), noise((1, 1, 8, 8), seed=0), steps=2)
    hook.remove()
    assert modes == [False, False]
    assert model.net.training and not model.net.blocks[0].training


def test_the_network_keeps_its_dtype_and_the_sampler_its_own():
    model, x = _network(), noise((2, 1, 8, 8), seed=0)
    full = sample(model, x, steps=4)
    model.net.to(torch.bfloat16)
    seen = []
    hook = model.net.register_forward_pre_hook(lambda net, args: seen.append((args[0].dtype, args[1].dtype)))
    half = sample(model, x, steps=4)
    hook.remove()
    assert half.dtype == torch.float32 and seen[0] == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.15)


def test_state_is_renewed_for_every_run():
    def counting(x, t, to, base, *, state):
        state.append(t)
        return base(x, t)

    d = denoiser(counting, parts=[WORLD], state=list)
    x = noise((2, 3, 4), seed=0)
    sample(d, x, steps=3)
    sample(d, x, steps=3)
    assert d.state == [], "a run works on its own fresh copy"


def test_a_composed_denoiser_prints_as_the_tree_it_is():
    model = _network()
    text = repr(guide(model.given(label=1), model, 2.0, between=(0.1, 0.8)))
    assert text.startswith("guide(")
    assert text.count("DiT(Linear(), predicts velocity") == 2
    assert "w=2.0" in text and "between=(0.1, 0.8)" in text


@pytest.mark.parametrize("steps", [10, 40])
def test_more_steps_follow_the_same_brownian_path(steps):
    """Strong convergence: twice the steps with one seed differ by little, with another seed by much."""
    world = mixture_1d(schedules.Linear())
    x = noise((400, 1), seed=0, dtype=torch.float64)

    def end(n, seed):
        return sample(world, x, sampler=samplers.ddpm, steps=n, grid=grids.logsnr, seed=seed)

    same = (end(steps, 1) - end(2 * steps, 1)).abs().mean()
    other = (end(steps, 1) - end(2 * steps, 2)).abs().mean()
    assert same < 0.35 * other


class TestNoise:
    def test_philox_answers_the_published_vectors(self):
        from suffuse.random import philox

        zero = torch.tensor(0)
        assert [hex(int(w)) for w in philox((zero,) * 4, (0, 0))] == [
            "0x6627e8d5",
            "0xe169c58d",
            "0xbc57ac4c",
            "0x9b00dbd8",
        ]
        ones = torch.tensor(0xFFFFFFFF)
        assert [hex(int(w)) for w in philox((ones,) * 4, (ones, ones))] == [
            "0x408f276d",
            "0x41c83b0e",
            "0xa20bc7c6",
            "0x6d5451fd",
        ]

    def test_an_item_depends_on_its_number_alone(self):
        whole = noise((9, 3, 8, 10), seed=4)
        assert torch.equal(noise((2, 3, 8, 10), seed=4, first=5), whole[5:7])
        assert torch.equal(noise((1, 3, 8, 10), seed=4)[0], whole[0])
        assert not torch.equal(whole, noise((9, 3, 8, 10), seed=5))
        assert not torch.equal(whole, noise((9, 3, 8, 10), seed=4, step=1))

    @pytest.mark.parametrize("small", [(2, 3, 8, 10), (2, 3, 5, 10), (2, 2, 8, 7)])
    def test_padding_does_not_matter(self, small):
        part = tuple(slice(0, n) for n in small)
        assert torch.equal(noise(small, seed=4), noise((2, 3, 8, 10), seed=4)[part])

    def test_it_is_standard_normal_and_white(self):
        x = noise((50, 4, 30, 31), seed=0, dtype=torch.float64)
        assert x.mean().abs() < 0.01 and (x.var() - 1).abs() < 0.01
        assert (x**4).mean().item() == pytest.approx(3, abs=0.06)
        for shift, axis in ((1, 0), (1, 1), (1, 2), (1, 3), (2, 3)):
            assert (x * x.roll(shift, axis)).mean().abs() < 0.012

    def test_a_path_is_brownian_in_its_clock(self):
        path = BrownianPath((8000, 1), 0, dtype=torch.float64)
        z = torch.cat([path.increment(a, a + 0.7) for a in (-6.0, -5.3, -4.6, -3.9)], 1)
        torch.testing.assert_close(torch.cov(z.T), torch.eye(4, dtype=torch.float64), rtol=0, atol=0.06)

    def test_a_path_is_refined_not_redrawn(self):
        import math

        coarse = BrownianPath((5, 2), 0, dtype=torch.float64).increment(-2.0, 1.0)
        path = BrownianPath((5, 2), 0, dtype=torch.float64)
        times = [-2.0, -1.2, 0.3, 1.0]
        q = [math.exp(v) for v in times]
        fine = sum(
            path.increment(a, b) * math.sqrt(math.exp(b) - math.exp(a)) for a, b in zip(times, times[1:], strict=False)
        )
        torch.testing.assert_close(coarse, fine / math.sqrt(q[-1] - q[0]), rtol=1e-9, atol=1e-9)

    def test_steps_finer_than_the_tree_still_have_variance_one(self):
        path = BrownianPath((8000, 1), 0, dtype=torch.float64)
        z = torch.cat([path.increment(0.002 * i, 0.002 * (i + 1)) for i in range(8)], 1)
        torch.testing.assert_close(torch.cov(z.T), torch.eye(8, dtype=torch.float64), rtol=0, atol=0.07)

    def test_a_motion_after_a_rise_is_new(self):
        path = BrownianPath((5000, 1), 0, dtype=torch.float64)
        first = path.increment(-1.0, 1.0)
        up = path.increment(1.0, -1.0)
        again = path.increment(-1.0, 1.0)
        z = torch.cat([first, up, again], 1)
        torch.testing.assert_close(torch.cov(z.T), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.07)
