"""Claims about feature caching."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from suffuse import Denoiser, cached, denoiser, grids, guide, noise, run, sample, samplers, schedules
from suffuse.nets import MLP, DiT, Label, UNet
from suffuse.parameterize import Prediction

LABEL = {"label": Label(5, optional=True)}
BUILD = {
    "unet": partial(UNet, 1, width=8, multipliers=(1, 2), blocks=1, heads=2, conditions=LABEL),
    "unet-wide": partial(UNet, 1, width=8, multipliers=(2, 2, 1), blocks=2, heads=2, conditions=LABEL),
    "dit": partial(DiT, 1, width=16, depth=4, heads=2, conditions=LABEL),
    "mlp": partial(MLP, 3, width=16, depth=3, conditions=LABEL),
}
KINDS = pytest.mark.parametrize("kind", BUILD)
CHANGE = {"unet": 1.0, "unet-wide": 0.7, "dit": 0.7, "mlp": 0.2}  # where some rows are computed and some are not
HOW = {"reuse": {"every": 3}, "line": {"every": 2, "order": 1}, "parabola": {"every": 2, "order": 2}}
CASES = pytest.mark.parametrize(
    ("kind", "how"),
    [pytest.param(kind, how, id=f"{kind}-{name}") for kind in ("unet", "dit", "mlp") for name, how in HOW.items()]
    + [pytest.param(kind, {"threshold": d}, id=f"{kind}-threshold") for kind, d in CHANGE.items()],
)


def model(kind: str, seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    net = BUILD[kind]().double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    return Denoiser(net, schedules.Linear())


def start(kind: str, rows: int = 4) -> Tensor:
    return noise((rows, 3) if kind == "mlp" else (rows, 1, 8, 8), seed=3, dtype=torch.float64)


def deep_parts(net: nn.Module) -> list[nn.Module]:
    """A module that runs once whenever the deep part does."""
    return [net.middle[0].block.conv1] if isinstance(net, UNet) else [next(net.blocks[-1].children())]


class Rows:
    """Counts the rows that come by modules."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.seen: list[int] = []
        for module in modules:
            module.register_forward_pre_hook(lambda module, args: self.seen.append(len(args[0])))


def spotless(net: nn.Module) -> bool:
    return not any({"forward", "deep"} & module.__dict__.keys() for module in net.modules())


class Polynomial(nn.Module):
    """A first block that adds 1 and two that add a polynomial of logsnr, scaled by a condition; no line of ours."""

    def __init__(self, degree: int) -> None:
        super().__init__()

        class Block(nn.Module):
            def __init__(self, add) -> None:
                super().__init__()
                self.add = add

            def forward(self, h: Tensor, *, u: Tensor, told: dict[str, Tensor]) -> Tensor:
                return h + self.add(u) * told["scale"].reshape(-1, 1)

        self.layers = nn.ModuleList(
            [Block(lambda u: 1 + 0 * u), Block(lambda u: (u / 5) ** degree), Block(lambda u: 1 - u / 7)]
        )

    def forward(self, x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        u = (2 * torch.log((1 - t) / t))[:, None]
        h = x.sin()
        for layer in self.layers:
            h = layer(h, u=u, told={"scale": scale})
        return 2 * h


def polynomial(degree: int) -> Denoiser:
    return Denoiser(Polynomial(degree), schedules.Linear(), predicts="x0", condition=["scale"])


TIMES = [0.97, 0.9, 0.8, 0.74, 0.5, 0.43, 0.41, 0.2, 0.1]


@pytest.mark.parametrize("batched", ["alone", "guided", "times by row"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_forecast_of_order_m_is_exact_for_a_polynomial_of_degree_m_on_an_uneven_grid(order: int, batched: str):
    x = torch.randn(2, 3, dtype=torch.float64)
    errors = {}
    for degree in (order, order + 1):
        pos = polynomial(degree).given(scale=torch.tensor([1.0, -2.0]).double())
        base = guide(pos, pos.given(scale=torch.tensor([0.5, 3.0]).double()), 2.0) if batched == "guided" else pos
        fast = cached(base, every=2, order=order, blocks=pos.net.layers)
        worst = []
        for t in TIMES:
            at = torch.tensor([t, 0.9 * t], dtype=torch.float64) if batched == "times by row" else t
            worst.append((fast(x, at).x0 - base(x, at).x0).abs().max().item())
        assert worst[0::2] == [0] * 5, "every second evaluation is full"
        errors[degree] = worst[2 * order + 1 :: 2]
    assert max(errors[order]) < 1e-12
    assert min(errors[order + 1]) > 1e-3


@KINDS
@pytest.mark.parametrize("how", [{"every": 1}, {"threshold": 0.0}], ids=str)
def test_a_cache_that_is_off_changes_no_bit(kind: str, how: dict):
    base = guide(model(kind).given(label=[0, 1, 2, 3]), model(kind), 1.5)
    x = start(kind)
    fast = cached(base, **how)
    assert torch.equal(sample(fast, x, steps=5, grid=grids.uniform), sample(base, x, steps=5, grid=grids.uniform))
    assert fast.cost.share == 1 and fast.cost.asked > 0


@CASES
def test_the_deep_part_runs_as_often_as_the_cost_says(kind: str, how: dict):
    base, x = model(kind).given(label=1), start(kind)
    fast, rows = cached(base, **how), Rows(deep_parts(base.net))
    sample(fast, x, steps=10, grid=grids.uniform)
    assert fast.cost.asked == 10 * len(x)
    assert fast.cost.made == sum(rows.seen) < fast.cost.asked
    if "every" in how:
        assert rows.seen == [len(x)] * -(-10 // how["every"])


@CASES
def test_every_run_begins_anew_and_leaves_the_network_as_it_was(kind: str, how: dict):
    base, x = model(kind).given(label=1), start(kind)
    sampler = {"dit": samplers.heun, "mlp": samplers.ddpm}.get(kind, samplers.dpmpp(order=2))
    fast = cached(base, **how)
    began = base(x, 0.5).x0
    first, cost = sample(fast, x, sampler=sampler, steps=8, grid=grids.uniform, seed=0), fast.cost.made
    for _ in run(fast, x.flip(0), sampler=sampler, steps=5, grid=grids.uniform, seed=1):
        assert spotless(base.net), "also between the steps"
    again = sample(fast, x, sampler=sampler, steps=8, grid=grids.uniform, seed=0)
    assert torch.equal(first, again) and fast.cost.made == cost
    assert torch.equal(base(x, 0.5).x0, began)
    assert not torch.equal(first, sample(base, x, sampler=sampler, steps=8, grid=grids.uniform, seed=0)), (
        "it does something"
    )


@CASES
def test_a_row_does_not_depend_on_its_batch_mates(kind: str, how: dict):
    base, x = model(kind).given(label=[0, 1, 2, 3]), start(kind)
    rows = Rows(deep_parts(base.net))
    together = sample(cached(base, **how), x, steps=10, grid=grids.uniform)
    if "threshold" in how:
        assert set(rows.seen) & {1, 2, 3}, "rows decide for themselves"
    for i in range(4):
        alone = sample(cached(base.rows([i]), **how), x[i : i + 1], steps=10, grid=grids.uniform)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-10)


@CASES
def test_the_halves_of_a_guided_batch_keep_their_own_features(kind: str, how: dict):
    """One batch of both with one cache is two batches with a cache each."""
    base, x = model(kind), start(kind)
    pos, neg = base.given(label=[0, 1, 2, 3]), base
    rows = Rows([base.net.told])
    got = sample(cached(guide(pos, neg, 3.0), **how), x, steps=10, grid=grids.uniform)
    assert rows.seen == [8] * 10, "one batch of both"
    apart = sample(guide(cached(pos, **how), cached(neg, **how), 3.0), x, steps=10, grid=grids.uniform)
    torch.testing.assert_close(got, apart, rtol=0, atol=1e-9)


@CASES
@pytest.mark.parametrize("guided", [False, True])
def test_rows_take_their_features_with_them(kind: str, how: dict, guided: bool):
    """Resampling a batch half way is what resampling would be to each row alone."""
    base, x, index = model(kind), start(kind), torch.tensor([2, 0, 2])

    def resampled(label: list[int], x: Tensor, index: Tensor) -> tuple[Tensor, int]:
        told = base.given(label=label)
        fast = cached(guide(told, base, 2.0) if guided else told, **how)
        for step in run(fast, x, steps=10, grid=grids.uniform):
            if step.k == 4:
                step.take(index)
            out = step.x
        return out, fast.cost.made

    got, _ = resampled([0, 1, 2, 3], x, index)
    for j, i in enumerate(index.tolist()):
        alone, made = resampled([i], x[i : i + 1], torch.tensor([0]))
        torch.testing.assert_close(got[j], alone[0], rtol=0, atol=1e-9)
        if not guided:  # and to be taken alone is nothing
            fast = cached(base.given(label=i), **how)
            torch.testing.assert_close(alone, sample(fast, x[i : i + 1], steps=10, grid=grids.uniform), rtol=0, atol=0)
            assert fast.cost.made == made


def test_calls_within_one_evaluation_keep_their_own_features():
    base, x = model("mlp").given(label=[0, 1, 2, 3]), start("mlp")

    def even(x: Tensor, t, to, a, b) -> Prediction:
        return Prediction(x, *base.schedule(t), x0=a(x, t).x0 + 0.5 * b(-x, t).x0)

    for how in HOW.values():
        got = sample(cached(denoiser(even, parts=[base, base]), **how), x, steps=10)
        apart = sample(denoiser(even, parts=[cached(base, **how), cached(base, **how)]), x, steps=10)
        torch.testing.assert_close(got, apart, rtol=0, atol=1e-10)


def test_a_guided_batch_may_lose_rows_by_a_mask():
    base, x = model("dit"), start("dit")
    fast = cached(guide(base.given(label=[0, 1, 2, 3]), base, 2.0), every=5)
    for step in run(fast, x, steps=10, grid=grids.uniform):
        if step.k == 1:
            step.take(torch.tensor([True, False, True, True]))
    assert fast.cost.made == 8 + 6 + 6, "at the start, after the loss, and five evaluations later"


def test_a_batch_of_another_size_begins_anew():
    base, x = model("dit"), start("dit")
    fast = cached(guide(base.given(label=1), base, 2.0, between=(0.3, 0.7)), every=100)
    sample(fast, x, steps=10, grid=grids.uniform)
    assert fast.cost.made == 4 + 8 + 4, "before, within and after the interval of guidance"


def test_two_networks_have_a_cache_each():
    good, bad, x = model("dit"), model("unet", seed=1), start("dit")
    fast = cached(guide(good.given(label=1), bad, 2.0), every=4)
    counts = [Rows(deep_parts(good.net)), Rows(deep_parts(bad.net))]
    sample(fast, x, steps=8, grid=grids.uniform)
    assert [count.seen for count in counts] == [[4, 4], [4, 4]]
    assert spotless(good.net) and spotless(bad.net)


def test_a_network_is_found_inside_another_module():
    class Wrapper(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, t, label=torch.zeros(len(x), dtype=torch.long))

    inner = model("dit").net
    count = Rows(deep_parts(inner))
    sample(cached(Denoiser(Wrapper(inner), schedules.Linear()), every=5), start("dit"), steps=10)
    assert count.seen == [4, 4]


@CASES
def test_an_exception_leaves_the_network_clean_and_nothing_half_kept(kind: str, how: dict):
    base, x = model(kind).given(label=1), start(kind)
    fast, (part,) = cached(base, **how), deep_parts(base.net)
    whole = base(x, 0.5).x0
    fast(x, 0.9)

    def broken(module, args):
        raise RuntimeError("broken")

    handle = part.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        for k in range(5):
            fast(x + k, 0.8)
    handle.remove()
    assert spotless(base.net)
    assert torch.equal(base(x, 0.5).x0, whole)
    assert torch.equal(fast(x, 0.5).x0, whole), "the evaluation after it is full"


def test_a_method_that_an_instance_had_of_its_own_comes_back():
    base, x = model("dit").given(label=1), start("dit")
    block = base.net.blocks[1]
    plain, calls = block.forward, []

    def own(h, *rest):
        calls.append(len(h))
        return plain(h, *rest)

    block.forward = own
    sample(cached(base, every=2), x, steps=4, grid=grids.uniform)
    assert block.__dict__["forward"] is own and calls == [4, 4]


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("how", [{"every": 2}, {"every": 2, "order": 1}], ids=str)
def test_gradients_flow_through_what_is_kept(kind: str, how: dict):
    fast, x = cached(model(kind).given(label=1), **how), start(kind, rows=1).requires_grad_()
    direction = torch.randn_like(x)

    def end(x: Tensor, grad: bool) -> Tensor:
        return sample(fast, x, steps=4, grid=grids.uniform, grad=grad).sin().sum()

    (gradient,) = torch.autograd.grad(end(x, True), x)
    h = 1e-5
    slope = (end(x.detach() + h * direction, False) - end(x.detach() - h * direction, False)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("how", [*HOW.values(), {"threshold": CHANGE["dit"]}], ids=str)
def test_a_run_without_gradients_keeps_no_graph(how: dict):
    """A gradient inside an evaluation, as posterior samplers take, does not reach into earlier ones."""
    base = model("dit").given(label=[0, 1, 2, 3])
    rows = Rows(deep_parts(base.net))

    def pulled(x: Tensor, t, to, part) -> Prediction:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = part(leaf, t).x0
            x0.square().sum().backward()  # raises where an earlier graph, already freed, hangs on
        return Prediction(x, *part.schedule(t), x0=x0.detach() - 0.01 * leaf.grad)

    fast = cached(denoiser(pulled, parts=[base]), **how)
    assert sample(fast, start("dit"), steps=10, grid=grids.uniform).isfinite().all()
    assert fast.cost.share < 1 and ("every" in how or set(rows.seen) & {1, 2, 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"say when to compute"),
        ({"every": 2, "threshold": 0.1}, r"one of the two"),
        ({"every": 0}, r"every must be at least 1, got 0"),
        ({"threshold": -0.1}, r"threshold must be a finite number of at least 0, got -0.1"),
        ({"threshold": float("nan")}, r"threshold must be a finite number of at least 0, got nan"),
        ({"every": 2, "order": 3}, r"order must be 0, 1 or 2.*got order=3"),
        ({"threshold": 0.1, "order": 1}, r"needs every="),
        ({"every": 2, "blocks": [nn.Identity()]}, r"needs two or more, got 1"),
    ],
)
def test_misuse(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        cached(model("dit"), **options)


def test_a_network_that_cannot_be_cut_is_refused():
    net = Denoiser(lambda x, t: x, schedules.Linear())
    with pytest.raises(ValueError, match=r"no UNet, DiT or MLP to cut"):
        cached(net, every=2)
    with pytest.raises(ValueError, match=r"needs two or more, got 1"):
        cached(Denoiser(DiT(1, depth=1), schedules.Linear()), every=2)
    two = cached(model("dit").given(label=1), every=2, order=1)
    with pytest.raises(ValueError, match=r"one time a row"):
        two(start("dit"), torch.rand(4, 1))


def test_blocks_of_another_shape_are_refused():
    class Odd(nn.Module):
        def __init__(self, by_name: bool) -> None:
            super().__init__()
            self.by_name = by_name
            self.layers = nn.ModuleList([nn.LSTM(3, 3), nn.LSTM(3, 3)])

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for layer in self.layers:
                x, _ = layer(input=x) if self.by_name else layer(x)
            return x

    for by_name, seen in ((True, r"this is block\(input=...\)"), (False, r"this is block\(h, ...\) -> tuple")):
        net = Odd(by_name)
        fast = cached(Denoiser(net, schedules.Linear()), every=2, blocks=net.layers)
        with pytest.raises(TypeError, match=seen):
            fast(torch.zeros(2, 3), 0.5)
        assert spotless(net)
