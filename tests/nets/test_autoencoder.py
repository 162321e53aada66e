"""Autoencoders, their losses and their codec; and what is MMDiT's own."""

import dataclasses

import pytest
import torch

import suffuse as sf
from suffuse import losses, nets
from suffuse.codec import Codec
from suffuse.nets import Autoencoder, Decoder, Encoder, LatentCodec, MMDiT, Tokens, tapped
from suffuse.training import ModelFileError
from suffuse.training.codecs import load_codec, save_codec

from .kinds import randomise

SIZES = {1: (16,), 2: (8, 16), 3: (8, 8, 4)}
EVERY_DIMENSION = pytest.mark.parametrize("dims", SIZES)


def small(dims=2, channels=2, **rest):
    torch.manual_seed(0)
    return Autoencoder(channels, 3, 8, (1, 2, 2), heads=2, dims=dims, **rest)


@EVERY_DIMENSION
def test_it_maps_to_a_quarter_of_the_size_and_back_and_learns_to(dims):
    net = small(dims)
    x = torch.nn.functional.interpolate(torch.randn(4, 2, *(n // 4 for n in SIZES[dims])), scale_factor=4.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    seen = []
    for _ in range(20):
        loss = losses.autoencoding(net, {"x": x}).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert net.encode(x)[0].shape == (4, 3, *(n // 4 for n in SIZES[dims])) and net(x).shape == x.shape
    assert sum(seen[-3:]) < 0.85 * sum(seen[:3]), seen
    for name, p in net.named_parameters():
        assert p.grad.abs().max() > 0, name


def test_a_row_does_not_depend_on_its_batch_mates():
    net, x = randomise(small()), torch.randn(3, 2, 8, 16)
    for act in (net, lambda y: net.encode(y)[1]):
        together = act(x)
        alone = torch.cat([act(x[i : i + 1]) for i in range(3)])
        assert (together - alone).abs().max() <= 1e-5 * together.abs().max()


def test_heads_put_attention_at_the_coarsest_level():
    x, seen = torch.randn(1, 1, 16, 8), []
    net = randomise(Encoder(1, 2, 8, (1, 2), heads=2))
    plain = net(x)
    with tapped(net, lambda site, q, k, v, mask: (seen.append(v.shape), v)[1]):
        assert (net(x) - plain).abs().max() > 1e-3 * plain.abs().max()
    assert seen == [(1, 2, 32, 8)], "8 x 4 places of 2 heads"
    with pytest.raises(ValueError, match="has no attention to tap"), tapped(Encoder(1, 2, 8, (1, 2)), lambda *a: a[3]):
        pass


def test_encoder_and_decoder_stand_alone():
    """For vector quantisation, plain autoencoders and generators."""
    code = Encoder(3, 5, 8, (1, 2))(torch.randn(2, 3, 8, 8))
    assert Decoder(5, 3, 8, (1, 2))(code).shape == (2, 3, 8, 8)


def test_its_fields_are_the_arguments_that_rebuild_it_and_its_codec_is_a_folder(tmp_path):
    net = randomise(small())
    codec = LatentCodec(net, 0.7, -0.2)
    save_codec(codec, tmp_path / "codec")
    again, x = load_codec(tmp_path / "codec"), torch.randn(2, 2, 8, 8)
    assert dataclasses.asdict(again.net) == dataclasses.asdict(net) and isinstance(again, Codec)
    assert torch.equal(again.encode(x, 5), codec.encode(x, 5))
    assert torch.equal(again.decode(torch.ones(2, 3, 2, 2)), codec.decode(torch.ones(2, 3, 2, 2)))
    assert not again.net.training and not any(p.requires_grad for p in again.net.parameters())
    with pytest.raises(ModelFileError, match=r"holds no codec\.json"):
        load_codec(tmp_path)


def test_the_estimated_scale_makes_latents_of_unit_variance():
    net = randomise(small())
    x = torch.randn(64, 2, 8, 8)
    plain = LatentCodec(net).encode(x, 3)
    assert not 0.9 < plain.std() < 1.1
    with torch.no_grad():
        z = LatentCodec.of(net, x, seed=1).encode(torch.randn(64, 2, 8, 8), 3)
    assert abs(z.mean()) < 0.1 and z.std().item() == pytest.approx(1, abs=0.1)


def test_a_codec_draws_by_item_and_gives_back_what_the_decoder_makes_of_it():
    net = randomise(small())
    codec, x = LatentCodec(net, 3.0, 0.5), torch.randn(3, 2, 8, 8)
    z = codec.encode(x, 7)
    assert torch.equal(z, codec.encode(x, 7)) and not torch.equal(z, codec.encode(x, 8))
    latent = z / 3.0 + 0.5
    mean, logvar = net.encode(x)
    white = (latent - mean) / (0.5 * logvar).exp()
    torch.testing.assert_close(white, sf.noise((3, 3, 2, 2), 7), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(codec.encode(x, None) / 3.0 + 0.5, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codec.decode(z), net.decode(latent), rtol=1e-4, atol=1e-4)
    assert codec.encode(x.double(), 7).dtype == torch.float64


def test_the_divergence_is_what_draws_say():
    """E[log q - log p] by Monte Carlo."""
    mean, logvar = torch.tensor([[0.4, -1.0]]).double(), torch.tensor([[-0.7, 0.3]]).double()
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    p = torch.distributions.Normal(0.0, 1.0)
    z = mean + (0.5 * logvar).exp() * sf.noise((200_000, 2), 1, dtype=torch.float64)
    drawn = (q.log_prob(z) - p.log_prob(z)).sum(1).mean()
    assert losses.kl_divergence(mean, logvar).item() == pytest.approx(drawn.item(), rel=0.01)


def test_the_evidence_bound_is_tight_for_a_linear_gaussian_world():
    """x = z + n, z ~ N(0, 1), n ~ N(0, 1/2): with the exact posterior, squared error + KL is -log p(x) + constant."""

    class Exact:
        def encode(self, x):
            return x * 2 / 3, torch.full_like(x, 1 / 3).log()

        def decode(self, z):
            return z

    x = torch.tensor([[-1.5], [0.0], [0.7], [2.0]])
    torch.manual_seed(0)
    many = {"x": x.repeat_interleave(40_000, 0)}
    bound = losses.autoencoding(Exact(), many, kl=1.0, square=1.0).reshape(4, -1).mean(1)
    evidence = x[:, 0].square() / (2 * 1.5)
    torch.testing.assert_close(bound - bound[1], evidence - evidence[1], rtol=0, atol=0.03)


def test_what_is_decoded_is_perturbed_by_a_strength_of_each_rows_own_and_is_what_is_aligned():
    """Decoding nothing but z, squared error is the noise: of a strength s ~ N(0, perturb^2), E s^2 and E s^4 known."""

    class Plain:
        def encode(self, x):
            return x, torch.full_like(x, -30)

        def decode(self, z):
            seen.append(z)
            return z

    seen, how = [], {"kl": 0.0, "square": 1.0, "perturb": 0.3}
    x = {"x": torch.zeros(20_000, 100)}
    torch.manual_seed(0)
    loss = losses.autoencoding(Plain(), x, **how)
    assert loss.mean().item() == pytest.approx(0.09, rel=0.03)
    assert loss.square().mean().item() == pytest.approx(3 * 0.09**2 * 1.02, rel=0.1), (
        "one strength for a row, not one for all"
    )
    torch.manual_seed(0)
    off = losses.autoencoding(Plain(), x, **how, aligned=lambda z, of: z.mean(1) + of.mean(1) + 1)
    torch.testing.assert_close(off, loss - seen[-1].mean(1) - 1)


def test_the_two_sides_of_the_adversarial_loss_reach_their_own_parameters_only():
    net = small(channels=1)
    judge, x = losses.Adversarial(1, 8, 2, weight=0.5), torch.randn(4, 1, 16, 16)
    made = net(x)
    judge(x, made).mean().backward()
    mine, its = ([p.grad.clone() for p in part.parameters()] for part in (net.decoder, judge))
    net.zero_grad(), judge.zero_grad()
    (-0.5 * judge.scores(net(x)).mean()).backward()
    for a, p in zip(mine, net.decoder.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-7)
    judge.zero_grad()
    real, fake = judge.scores(x), judge.scores(made.detach())
    ((1 - real).relu() + (1 + fake).relu()).mean().backward()
    for a, p in zip(its, judge.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-7)


def test_the_judge_learns_to_tell_and_then_pulls_pictures_towards_what_is_real():
    torch.manual_seed(0)
    judge = losses.Adversarial(1, 8, 2, weight=1.0)
    real, blurred = torch.randn(16, 1, 16, 16), torch.zeros(16, 1, 16, 16, requires_grad=True)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        judge(real, blurred.detach()).mean().backward()
        optimizer.step()
    assert judge.scores(real).mean() > 0.5 and judge.scores(blurred).mean() < -0.5
    start = judge.scores(blurred).mean().item()
    (slope,) = torch.autograd.grad(judge(real, blurred).sum(), blurred)
    assert judge.scores(blurred - 3 * slope / slope.norm()).mean() > start + 1e-3


def test_the_perceptual_term_is_the_metrics_distance_and_has_a_gradient():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.SiLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.SiLU()
    ).eval()
    term = losses.Perceptual(net, [net[1], net[3]], 2.0)
    x, y = torch.rand(3, 1, 12, 12), torch.rand(3, 1, 12, 12).requires_grad_()
    each = term(x, y)
    known = sf.metrics.perceptual(x, y.detach(), net, features="a test").value
    assert each.mean().item() == pytest.approx(2 * known, rel=1e-4)
    each.sum().backward()
    assert y.grad.abs().max() > 0 and not list(term.parameters()), "its network is not trained"
    assert term(x, x).abs().max() < 1e-10


def test_a_picture_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"halves 2 times: sizes must be multiples of 4, got \(6, 8\)"):
        small().encode(torch.randn(1, 2, 6, 8))


def test_mmdit_hears_every_token_and_no_padding():
    net = randomise(MMDiT(1, 2, 16, 2, 2, conditions={"text": Tokens(4, vocab=9)}))
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.6])
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    padded = torch.tensor([[1, 2, 3, -1, -1], [4, 5, 6, -1, -1]])
    here = net(x, t, text=ids)
    torch.testing.assert_close(net(x, t, text=padded), here, rtol=1e-4, atol=1e-5)
    for place in range(3):
        other = ids.clone()
        other[:, place] = 8
        assert (net(x, t, text=other) - here).flatten(1).abs().amax(1).min() > 1e-3 * here.abs().max()
    assert (net(x, t, text=ids.flip(1)) - here).abs().max() > 1e-3 * here.abs().max(), "their order counts"


def test_mmdit_tokens_look_at_the_patches_before_they_answer():
    """In the second block the patches hear of each other through the tokens alone, when their own looks are cut."""
    net = randomise(MMDiT(1, 2, 16, 2, 2, conditions={"text": Tokens(4, vocab=9)}))
    x, t, ids = torch.randn(1, 1, 4, 4), torch.tensor([0.5]), torch.tensor([[1, 2]])
    y = x.clone()
    y[..., 0, 0] += 2

    def cut(site, q, k, v, mask):
        patches = 4
        wall = torch.zeros(q.shape[-2], k.shape[-2], dtype=torch.bool)
        wall[-patches:, -patches:] = ~torch.eye(patches, dtype=torch.bool)
        return nets.attend(q, k, v, mask & ~wall)

    with tapped(net, cut):
        moved = (net(x, t, text=ids) - net(y, t, text=ids))[0, 0].abs()
    assert moved[2:, 2:].max() > 1e-4 * moved.max()


@pytest.mark.parametrize("axis", [0, 1])
def test_mmdit_knows_where_a_patch_is_along_every_axis(axis):
    net = randomise(MMDiT(2, 2, 16, 2, 2))
    x, t = torch.randn(1, 2, 8, 8), torch.rand(1)
    rolled = net(x.roll(2, axis + 2), t).roll(-2, axis + 2)
    assert (rolled - net(x, t)).abs().max() > 1e-2 * rolled.abs().max()


def test_mmdit_does_not_care_how_large_queries_and_keys_are():
    net = randomise(MMDiT(2, 2, 16, 2, 2))
    x, t = torch.randn(1, 2, 4, 4), torch.rand(1)
    before = net(x, t)
    with torch.no_grad():
        for block in net.blocks:
            block.patches.qkv.weight[:32] *= 7
            block.patches.qkv.bias[:32] *= 7
    torch.testing.assert_close(net(x, t), before, rtol=1e-3, atol=1e-3)
