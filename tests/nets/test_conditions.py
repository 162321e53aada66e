"""Claims about what a network may be told: what is accepted, what "nothing" is, and what padding does."""

from __future__ import annotations

import json

import pytest
import torch

from suffuse.nets import MLP, DiT, Label, Scalar, Spatial, Tokens, UNet, Vector, spec_from_json, spec_to_json

nan, inf = float("nan"), float("inf")
ALL = [Label(10), Label(3, optional=False), Vector(4), Tokens(8), Tokens(8, vocab=20), Spatial(2, True), Scalar()]
REQUIRED = [Label(2, False), Vector(2, False), Tokens(2, None, False), Spatial(2), Scalar(False)]


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_a_spec_survives_json(spec: object) -> None:
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "Lable", "classes": 3}, "one of Label, Vector, Scalar, Tokens, Spatial, Words, got 'Lable'"),
        ({"classes": 3}, "got None"),
        ({"type": "Label", "clases": 3}, "Label has the fields classes, optional: unknown or missing clases"),
        ({"type": "Label"}, "unknown or missing classes"),
    ],
)
def test_json_that_is_no_spec_is_one_clear_error(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_from_json(data)


@pytest.mark.parametrize(
    ("spec", "value", "rows"),
    [
        (Label(10), 3, torch.tensor([3])),
        (Label(10), [3, 9], torch.tensor([3, 9])),
        (Label(10), torch.tensor([3], dtype=torch.uint8), torch.tensor([3])),
        (Vector(2), [1, 2], torch.tensor([[1.0, 2.0]])),
        (Scalar(), 0.5, torch.tensor([0.5])),
        (Scalar(), 1, torch.tensor([1.0])),
        (Tokens(4, vocab=5), [0, 4, -1], torch.tensor([[0, 4, -1]])),
        (Tokens(1), [[0.5]], torch.tensor([[[0.5]]])),
    ],
    ids=str,
)
def test_plain_python_values_become_rows(spec: object, value: object, rows: torch.Tensor) -> None:
    got = spec.check("it", value)
    assert torch.equal(got, rows) and got.dtype == rows.dtype


@pytest.mark.parametrize(
    ("spec", "value", "error", "message"),
    [
        (Label(10), 12, ValueError, "it must be in 0..9, got 12"),
        (Label(10), 10, ValueError, "it must be in 0..9, got 10"),  # the null is not for users
        (Label(10), [1, -1], ValueError, "it must be in 0..9, got -1"),
        (Label(10), 1.0, TypeError, "a class in 0..9, got torch.float32"),
        (Label(10), True, TypeError, "got torch.bool"),
        (Label(10), "cat", TypeError, "it must be a class in 0..9, got a str"),
        (Label(10), [[1]], ValueError, r"shape one class, or \(rows,\) classes, got \(1, 1\)"),
        (Vector(3), [1.0, 2.0], ValueError, r"shape \(3,\) or \(rows, 3\), got \(1, 2\)"),
        (Vector(3), 1.0, ValueError, r"shape \(3,\) or \(rows, 3\), got \(\)"),
        (Vector(2), [1.0, nan], ValueError, "must be finite, got nan"),
        (Vector(2), None, TypeError, "must be numbers, got a NoneType"),
        (Vector(2), torch.ones(2) * 1j, TypeError, "must be numbers, got torch.complex64"),
        (Scalar(), inf, ValueError, "must be finite, got inf"),
        (Scalar(), torch.zeros(2, 2), ValueError, r"a number, or \(rows,\) numbers, got \(2, 2\)"),
        (Tokens(2), torch.zeros(5, 3), ValueError, r"shape \(L, 2\) or \(rows, L, 2\), got \(1, 5, 3\)"),
        (Tokens(2), [[nan, 1.0]], ValueError, "must be finite, got nan"),  # half a padding position
        (Tokens(2, optional=False), [[[0.0, 1.0]], [[nan, nan]]], ValueError, "only padding in row 1"),
        (Tokens(2, vocab=5), [5], ValueError, "must be in 0..4, or -1 for padding, got 5"),
        (Tokens(2, vocab=5), [-2], ValueError, "must be in 0..4, or -1 for padding, got -2"),
        (Tokens(2, vocab=5), [[1, 2], [3]], TypeError, "ids in 0..4"),
        (Spatial(3), torch.zeros(1, 2, 4, 4), ValueError, r"shape \(rows, 3, \*spatial\), got \(1, 2, 4, 4\)"),
        (Spatial(3), torch.zeros(1, 3), ValueError, r"got \(1, 3\)"),
        (Spatial(1), torch.full((1, 1, 2), nan), ValueError, "must be finite, got nan"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_one_clear_error(
    spec: object, value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        spec.check("it", value)
    assert "\n" not in str(raised.value)


def test_gradients_pass_through_a_check() -> None:
    value = torch.ones(2, 3, requires_grad=True)
    assert Vector(3).check("style", value).requires_grad


@pytest.mark.parametrize("spec", REQUIRED, ids=str)
def test_what_must_be_given_has_no_null(spec: object) -> None:
    with pytest.raises(ValueError, match="no null for 'it': it was built with optional=False, so it must be given"):
        spec.null("it", torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(("kind", "sizes"), [(Label, (0,)), (Vector, (-1,)), (Tokens, (2, 0)), (Spatial, (1.5,))])
def test_sizes_are_positive_whole_numbers(kind: type, sizes: tuple) -> None:
    with pytest.raises(ValueError, match="whole number of at least 1"):
        kind(*sizes)


NETS = {
    "mlp": (lambda spec: MLP(2, width=16, conditions={"text": spec}), (2,)),
    "unet": (lambda spec: UNet(1, width=8, multipliers=(1, 2), blocks=1, conditions={"text": spec}), (1, 4, 4)),
    "dit": (lambda spec: DiT(1, width=16, depth=2, conditions={"text": spec}), (1, 4, 4)),
}


@pytest.mark.parametrize("vocab", [None, 7])
@pytest.mark.parametrize("kind", NETS)
def test_padding_does_not_matter_and_all_padding_is_the_null(kind: str, vocab: int | None) -> None:
    torch.manual_seed(0)
    build, shape = NETS[kind]
    spec = Tokens(3, vocab)
    net = build(spec)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, t = torch.randn(2, *shape), torch.rand(2)
    tokens = torch.randn(2, 4, 3) if vocab is None else torch.randint(0, 7, (2, 4))
    padding = spec.null("text", x)
    padded = torch.cat([tokens, padding, padding, padding], 1)
    short = net(x, t, text=tokens)
    assert torch.allclose(net(x, t, text=padded), short, rtol=1e-5, atol=1e-5)
    assert torch.allclose(net(x, t, text=torch.cat([padding] * 5, 1)), net(x, t, text=padding), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(net(x, t, text=padding), short, rtol=1e-2)


def test_the_order_of_ids_matters_and_the_order_of_features_does_not() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 4, 4), torch.rand(2)
    for vocab, tokens in ((None, torch.randn(2, 4, 3)), (7, torch.tensor([[1, 2, 3, 4], [5, 6, 1, 0]]))):
        net = NETS["dit"][0](Tokens(3, vocab))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        same = torch.allclose(net(x, t, text=tokens), net(x, t, text=tokens.flip(1)), rtol=1e-4, atol=1e-4)
        assert same == (vocab is None)
