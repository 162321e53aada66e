"""`suffuse distil` and `suffuse edit`: students begin as the teacher, resume bit for bit, and cost what is counted."""

import functools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from suffuse import Denoiser, cli, nets, noise, pictures, sample, samplers, schedules
from suffuse.losses import fewstep
from suffuse.recipes import digits, distil, draw, edit
from suffuse.recipes.run import Run
from suffuse.training import fit, save
from suffuse.training.backward import Backward
from suffuse.training.files import read_json
from tests.losses import worlds as flow
from tests.recipes.test_cli import call

BRIEF = {"steps": 4, "batch_size": 8, "pairs": 16, "progress": False}


def tiny():
    """A small network in the place of the recipe's."""
    net = nets.UNet(1, width=8, multipliers=(1, 2), blocks=1, heads=2, conditions={"label": nets.Label(10)})
    for weight in net.parameters():
        if not weight.any():  # what begins at 0 would hear nothing of its conditions
            nn.init.normal_(weight, std=0.1)
    return Denoiser(net, schedules.Linear(), predicts="velocity")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run folder of digits with a small network: its weights are random, which no student minds."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        save(tiny(), out / "model")
    Run(out, "digits", digits.SHAPE, {}, 1.0).write()
    return out


@pytest.mark.parametrize("name", distil.METHODS)
def test_a_student_begins_as_its_teacher(name):
    torch.manual_seed(0)
    teacher, x = tiny(), noise((6, *digits.SHAPE), seed=0)
    student = distil.student(teacher, distil.METHODS[name].adds)
    told = {"label": torch.arange(6)} | ({"w": 3.0} if distil.METHODS[name].adds == "w" else {})
    before = teacher.given(label=torch.arange(6))(x, 0.6).x0
    torch.testing.assert_close(student.given(**told)(x, 0.6, to=0.2).x0, before)
    assert all(p.requires_grad for p in student.net.parameters())
    shared = {id(p) for p in student.net.parameters()} & {id(p) for p in teacher.net.parameters()}
    assert not shared, "a teacher does not learn along"


@pytest.mark.parametrize("name", distil.METHODS)
def test_every_method_trains_samples_within_its_budget_and_hears_what_it_was_given(name, teacher, tmp_path):
    made = distil.train(teacher, tmp_path / name, method=name, nfe=2, **BRIEF)
    assert made.settings["lr"] == distil.METHODS[name].lr
    model, method = distil.model_for(made, 2), distil.METHODS[name]
    with samplers.budget(model, 4, nfe=2) as spent:
        x = sample(model, noise((4, *digits.SHAPE), seed=0), sampler=distil.plan(made, model, 2), seed=1)
    assert spent.nfe == 2 and x.isfinite().all()
    before, after = (m.net.state_dict() for m in (Run.open(teacher).model(), model))
    moved = [(after[name] - value).abs().max() for name, value in before.items()]
    assert max(moved) > 0
    if method.adds:
        assert model.net.told.embedders[-1].embed.second.weight.abs().max() > 0, "what was silent is heard"
    cost = read_json(made.path / "cost.json")
    assert cost == distil.cost(made) and cost["train_seconds"] > 0
    copies = 3 if name in ("dmd", "dmd2") else 2  # the network, its average, and the second model
    assert cost["kept"] // cost["parameters"] == copies
    assert made.settings.get("scales") == ((1.0, 3.0) if method.adds == "w" else None)


QUICK = ("consistency-training", "dmd", "progressive")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in distil.METHODS])
def test_an_interrupted_training_resumes_bit_for_bit(name, teacher, tmp_path, monkeypatch):
    how = BRIEF | {"steps": 8, "method": name, "nfe": 4}
    whole = distil.train(teacher, tmp_path / "whole", **how)
    out, asked = tmp_path / "part", []

    def stopping(self, *args):
        asked.append(1)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return usual(self, *args)

    usual = Backward.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Backward, "__call__", stopping)
        patch.setattr(distil, "fit", functools.partial(fit, checkpoint_every=0.0))
        with pytest.raises(KeyboardInterrupt):
            distil.train(teacher, out, **how)
        again = distil.train(teacher, out, resume=True, **how)
    assert len(asked) == 6 + 3, "five steps of eight were kept"
    path = "model/model.safetensors"
    assert (again.path / path).read_bytes() == (whole.path / path).read_bytes()
    other = distil.train(teacher, tmp_path / "other", **how | {"seed": 1})
    assert (other.path / path).read_bytes() != (whole.path / path).read_bytes()


def test_a_halved_student_is_the_stage_made_for_the_budget(teacher, tmp_path, monkeypatch):
    """Each half learns of the student before it; the first, of the teacher with its guidance."""
    usual, taught = fewstep.progressive, []

    def watched(model, batch, *, teacher, steps, w=1.0):
        taught.append((next(teacher.net.parameters()), steps, w))
        return usual(model, batch, teacher=teacher, steps=steps, w=w)

    monkeypatch.setattr(fewstep, "progressive", watched)
    made = distil.train(teacher, tmp_path / "out", method="progressive", nfe=1, w=2.0, **BRIEF)
    assert sorted(p.name for p in made.path.glob("steps-*")) == ["steps-1", "steps-2", "steps-4", "steps-8"]
    weights = {n: next(iter(distil.model_for(made, n).net.parameters())) for n in (1, 2, 4, 8)}
    assert not any(torch.equal(weights[n], weights[2 * n]) for n in (1, 2, 4))
    assert torch.equal(weights[1], next(iter(made.model().net.parameters())))
    assert [(steps, w) for _, steps, w in taught] == [(8, 2.0), (4, 1.0), (2, 1.0), (1, 1.0)]
    of = [next(Run.open(teacher).model().net.parameters()), weights[8], weights[4], weights[2]]
    assert all(torch.equal(by, want) for (by, _, _), want in zip(taught, of, strict=True))


GUIDED = [name for name in distil.METHODS if name != "consistency-training"]


@pytest.mark.parametrize(
    "name", [n if n in ("meanflow", "dmd") else pytest.param(n, marks=pytest.mark.slow) for n in GUIDED]
)
def test_the_teachers_guidance_is_taken_over(name, teacher, tmp_path):
    """Beyond what latent consistency learns anyway."""
    found = []
    for w in (3.0, 6.0):
        made = distil.train(teacher, tmp_path / f"{w}", method=name, nfe=1, w=w, **BRIEF | {"pairs": 8})
        found.append((made.path / "model/model.safetensors").read_bytes())
    assert found[0] != found[1]


@pytest.mark.parametrize("name", distil.METHODS)
def test_a_student_runs_by_the_rule_of_its_method(name):
    """Exact students in three steps: one that jumps lands right by jumping anew, any other by going on."""
    made, start = Run(None, "distil", (2,), {"method": name}, 1.0), noise((500, 2), seed=1, dtype=torch.float64)
    model = flow.exact()
    if name in {"scm", "dmd", "dmd2"} or "consistency" in name:  # trained to be told where it is, never where it goes
        model = samplers.endpoint(model)
        x = (sample(model, start, sampler=distil.plan(made, model, 3), seed=0) - flow.M) / flow.C**0.5
        assert x.mean(0).abs().max() < 0.18 and (x.std(0) - 1).abs().max() < 0.13
    else:
        x = sample(model, start, sampler=distil.plan(made, model, 3))
        torch.testing.assert_close(x, flow.M + flow.C**0.5 * start)


class _Folded(nn.Module):
    """A student sure of one picture, w (label/10 - 1/2)."""

    conditions = {"label": nets.Label(10), "w": nets.Scalar()}

    def forward(self, x, t, label, w):
        return (x - (w * (label / 10 - 0.5))[:, None, None, None]) / t[:, None, None, None]


def test_a_student_is_told_the_guidance_folded_into_it_and_none_is_guided_twice(monkeypatch):
    about = {"method": "latent-consistency", "w": 2.0, "scales": [1.0, 3.0]}
    made, start = Run(None, "distil", digits.SHAPE, about, 1.0), noise((2, *digits.SHAPE), seed=0)
    student = Denoiser(_Folded(), schedules.Linear())
    monkeypatch.setattr(Run, "model", lambda self: student)
    for asked, w in ((None, 2.0), (2.75, 2.75), (1, 1.0)):
        model, said = draw.told(made, 2, [1, 4], [], asked)
        x = sample(model, start, sampler=distil.plan(made, model, 2), seed=0)
        assert said["w"] == w and (x[0] + 0.4 * w).abs().max() < 1e-5 and (x[1] + 0.1 * w).abs().max() < 1e-5
    with pytest.raises(ValueError, match="learned guidance from w=1 to 3, got w=4"):
        draw.told(made, 2, [1, 4], [], 4.0)
    plain, made = tiny(), Run(None, "distil", digits.SHAPE, {"method": "scm", "w": 3.0}, 1.0)
    monkeypatch.setattr(Run, "model", lambda self: plain)
    model, said = draw.told(made, 2, [1, 4], [], None)
    assert said["w"] == 1 and torch.equal(model(start, 0.5).x0, plain.given(label=torch.tensor([1, 4]))(start, 0.5).x0)
    with pytest.raises(ValueError, match="guidance of w=3 is folded into this student and would act twice"):
        draw.told(made, 2, [1, 4], [], 2.0)


def test_a_student_of_another_shape_is_refused():
    wide = nets.MLP(2, width=16, depth=1)
    with pytest.raises(ValueError, match=r"a student of another shape: .* is \(.*\), the teacher's \("):
        distil.inherit(nets.MLP(2, width=8, depth=1), wide)
    with pytest.raises(ValueError, match=r"a student of another shape: only the teacher has blocks\.1"):
        distil.inherit(wide, nets.MLP(2, width=16, depth=2))


def test_the_command_line_distils_measures_and_samples(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "classifier", lambda: _Judge())
    call("distil", teacher, "--method", "meanflow", "--steps", 2, "--batch-size", 8, "--out", tmp_path / "mf")
    said = capsys.readouterr().out
    assert "1 evaluations a sample, counted" in said and "Frechet" not in said and "label_accuracy" in said
    assert "--sampler ddim --steps 1 --grid uniform" in said
    weights = tmp_path / "mf" / "model" / "model.safetensors"
    before = weights.read_bytes()
    call("distil", teacher, "--steps", 2, "--batch-size", 8, "--out", tmp_path / "mf", "--resume")
    assert weights.read_bytes() == before
    drawn = []
    for way in (["--sampler", "ddim", "--grid", "uniform"], []):  # by its own rule and grid where none is named
        call("sample", tmp_path / "mf", "--steps", 2, "--n", 2, "--label", 3, "--out", tmp_path / "s.png", *way)
        drawn.append(np.asarray(Image.open(tmp_path / "s.png")))
    assert (drawn[0] == drawn[1]).all()
    for wrong, message in [
        (["sample", tmp_path / "mf", "--steps", 3, "--sampler", "heun"], "cannot run a two-time network"),
        (["distil", tmp_path / "mf"], "is a student itself, its guidance would be folded twice"),
        (["distil", teacher, "--method", "progressive", "--nfe", 3], "nfe must be 1, 2, 4 or 8, got 3"),
        (["distil", teacher, "--nfe", 0], "nfe must be at least 1, got 0"),
        (["distil", teacher, "--steps", 3, "--out", tmp_path / "mf"], "holds checkpoints"),
        (["distil", teacher, "--method", "consistency-training", "--w", 2], "learns from data alone"),
        (["distil", teacher, "--w", "nan"], "w must be finite, got nan"),
        (["distil", teacher, "--method", "latent-consistency", "--w", 0.5], "learns guidance from w=1 on, got w=0.5"),
        (["distil", teacher, "--steps", 0], "steps must be at least 1, one for each of student, got 0"),
        (["distil", teacher, "--method", "reflow", "--steps", 1], "at least 2, one for each of round-2, one-step"),
        (["distil", teacher, "--out", teacher], "holds a run of digits, which a student would replace"),
    ]:
        with pytest.raises(SystemExit):
            call(*wrong)
        assert message in capsys.readouterr().err


class _Judge(nn.Module):
    features = 8

    def read(self, x):
        return x.flatten(1)[:, :10].argmax(1), x.flatten(1)[:, 20:28]


def test_a_student_of_other_pictures_is_measured_by_their_own(tmp_path):
    """Of another size than digits, by a judge and real pictures that are given."""
    net = nets.UNet(1, width=8, multipliers=(1,), blocks=1, heads=2, conditions={"label": nets.Label(10)})
    save(Denoiser(net, schedules.Linear()), tmp_path / "model")
    made = Run(tmp_path, "distil", (1, 12, 12), {"of": "images", "method": "scm", "w": 1.0}, 1.0)
    sets = [{"x": noise((n, 1, 12, 12), seed=n).clamp(-1, 1), "label": torch.arange(n) % 10} for n in (40, 30)]
    found = distil.evaluate(made, nfe=(2,), by=(_Judge(), *sets))
    assert found["2"]["nfe"] == 2 and found["2"]["label_accuracy"]["n"] == 40
    with pytest.raises(ValueError, match="distilled from a run of images: only digits are measured"):
        distil.evaluate(made)


def test_a_folder_is_taken_up_with_its_own_settings_only_and_overwritten_whole(teacher, tmp_path):
    """Every method that has one stage calls it the same."""
    out, how = tmp_path / "out", BRIEF | {"method": "scm", "steps": 2}
    distil.train(teacher, out, **how)
    asked, path = read_json(out / "asked.json"), out / "model" / "model.safetensors"
    before = path.read_bytes()
    for other, message in (
        ({"method": "dmd"}, "begun with other settings: method was 'scm', now 'dmd'"),
        ({"w": 3.0}, r"w was 1.0, now 3.0"),
        ({"steps": 5}, "steps was 2, now 5"),
    ):
        with pytest.raises(ValueError, match=message):
            distil.train(teacher, out, resume=True, **how | other)
    with pytest.raises(ValueError, match="holds checkpoints or pairs of an earlier training: resume, or overwrite"):
        distil.train(teacher, out, **how | {"method": "reflow"})
    assert path.read_bytes() == before and read_json(out / "asked.json") == asked
    for nfe in (4, 8):
        distil.train(teacher, out, overwrite=True, **how | {"method": "progressive", "nfe": nfe})
    assert [p.name for p in out.glob("st*")] == ["steps-8"], "nothing stays of what was before"


def test_pairs_of_another_training_are_not_taken_up(teacher, tmp_path):
    out, how = tmp_path / "out", BRIEF | {"method": "reflow", "nfe": 2}
    with pytest.raises(ValueError, match="batch_size must be at least 1"):  # after the pairs are there
        distil.train(teacher, out, **how | {"batch_size": 0, "w": 3.0})
    distil.train(teacher, out, overwrite=True, **how)
    fresh = distil.train(teacher, tmp_path / "fresh", **how)
    name = "round-2/pairs.safetensors"
    assert (out / name).read_bytes() == (fresh.path / name).read_bytes()


def test_what_cannot_be_guided_is_not_folded(tmp_path):
    for told, why in (({}, "takes no conditions"), ({"label": nets.Label(10, optional=False)}, "has no null 'label'")):
        out = tmp_path / why
        net = nets.UNet(1, width=8, multipliers=(1,), blocks=1, heads=2, conditions=told)
        save(Denoiser(net, schedules.Linear()), out / "model")
        Run(out, "digits", digits.SHAPE, {}, 1.0).write()
        for how in ({"method": "scm", "w": 2.0}, {"method": "latent-consistency"}):
            with pytest.raises(ValueError, match=why):
                distil.train(out, tmp_path / "x", **BRIEF | how)


def test_a_student_of_latents_keeps_what_decodes_them_and_learns_in_float32():
    teacher = tiny()
    teacher.net.bfloat16()  # as models are shipped
    teacher.codec, teacher.shape = object(), digits.SHAPE
    for adds in (None, "to"):
        student = distil.student(teacher, adds)
        assert student.codec is teacher.codec and student.shape == teacher.shape
        assert {p.dtype for p in student.net.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.net.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["dmd2", "scm"])
def test_a_teacher_in_bfloat16_teaches_as_in_float32(name, teacher, tmp_path):
    half, whole, found = Run.open(teacher).model(), Run.open(teacher).model(), []
    half.net.bfloat16()
    whole.net.bfloat16().float()
    for part, model in (("half", half), ("whole", whole)):
        save(model, tmp_path / part / "model")
        Run(tmp_path / part, "digits", digits.SHAPE, {}, 1.0).write()
        made = distil.train(tmp_path / part, tmp_path / f"{part}-out", method=name, **BRIEF)
        found.append((made.path / "model/model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_reflow_of_a_model_that_is_no_flow_is_refused(teacher, tmp_path):
    out = tmp_path / "vp"
    save(Denoiser(tiny().net, schedules.VP(), "v"), out / "model")
    Run(out, "digits", digits.SHAPE, {}, 1.0).write()
    with pytest.raises(ValueError, match=r"lives on VP\(.*use model.on\(sf.schedules.Linear\(\)\)"):
        distil.train(out, tmp_path / "x", method="reflow", **BRIEF)


def test_a_teacher_that_was_distilled_before_is_refused():
    for adds, why in (("to", "it is a two-time network"), ("w", "its guidance is folded in")):
        with pytest.raises(ValueError, match=why):
            distil.student(distil.student(tiny(), adds), adds)


class _Towards(nn.Module):
    """A flow to a picture that is as bright as the label says, on its left half; the right half is the data's own."""

    conditions = {"label": nets.Label(10)}

    def forward(self, x, t, label):
        goal = x.new_zeros(x.shape)
        level = torch.where(label < 10, label / 5 - 0.9, 0.0)
        goal[..., :4] = level.to(x)[:, None, None, None]
        alpha, sigma = 1 - t[:, None, None, None], t[:, None, None, None]
        share = torch.zeros_like(goal)
        share[..., :4] = 1e-3 / (alpha**2 * 1e-3 + sigma**2) * 1.0
        share[..., 4:] = 0.2 / (alpha**2 * 0.2 + sigma**2)
        x0 = goal + alpha * share * (x - alpha * goal)
        return (x - x0) / sigma.clamp(min=1e-4)


def test_edits_change_what_is_named_and_pds_keeps_the_rest_where_sds_does_not():
    model = Denoiser(_Towards(), schedules.Linear())
    x = (noise((16, *digits.SHAPE), seed=0) * 0.2**0.5).clamp(-1, 1)
    x[..., :4] = 1 / 5 - 0.9
    found = {
        method: edit.edited(model, x, source="1", target="8", method=method, w=1.0, steps=150, lr=0.06)
        for method in ("pds", "dds", "sds")
    }
    for method in ("pds", "dds"):
        assert (found[method][..., :4] - 0.7).abs().mean() < 0.1, method
        assert (found[method] - x)[..., 4:].abs().max() < 1e-3, method
    assert (found["sds"][..., :4] - 0.7).abs().mean() < 0.1
    assert (found["sds"] - x)[..., 4:].abs().mean() > 0.1, "it goes to the mode"


def test_suffuse_edit_writes_a_picture_with_its_recipe(teacher, tmp_path, capsys):
    Image.fromarray((np.arange(256).reshape(16, 16) % 200).astype("uint8")).save(tmp_path / "in.png")
    how = ["--run", teacher, "--steps", 2, "--out", tmp_path / "out.png"]
    call("edit", tmp_path / "in.png", "--source", "1", "--target", "7", *how)
    recipe = pictures.read_recipe(tmp_path / "out.png")
    assert recipe["source"] == "1" and recipe["target"] == "7" and recipe["method"] == "pds"
    shutil.copy(__file__, tmp_path / "no.png")
    for wrong, message in [
        (["edit", tmp_path / "in.png", "--source", "one", "--target", "7", *how], "takes labels, which are numbers"),
        (["edit", tmp_path / "in.png", "--source", "1", "--target", "12", *how], "label must be in 0..9, got 12"),
        (["edit", tmp_path / "no.png", "--source", "1", "--target", "2", *how], "is not a picture that can be read"),
        (["edit", tmp_path / "in.png", "--source", "1", "--target", "2", "--method", "x"], "invalid choice"),
        (["edit", tmp_path / "in.png", "--source", "²", "--target", "7", *how], "takes labels, which are numbers"),
        (["edit", tmp_path, "--source", "1", "--target", "2", *how], "is a folder: name one picture"),
        (["edit", tmp_path / "in.png", "--source", "1", "--target", "2", *how, "--out", tmp_path], "name the picture"),
    ]:
        with pytest.raises(SystemExit):
            call(*wrong)
        err = capsys.readouterr()
        assert message in err.err + err.out or message == "invalid choice"


def test_each_row_is_edited_to_what_it_is_told_and_students_are_refused(teacher, tmp_path):
    model, x = Denoiser(_Towards(), schedules.Linear()), torch.zeros(2, *digits.SHAPE)
    found = edit.edited(model, x, source="4", target=["8", "1"], w=1.0, steps=60, lr=0.1)
    assert (found[0, ..., :4] - found[1, ..., :4]).mean() > 0.5
    made = distil.train(teacher, tmp_path / "out", method="scm", **BRIEF)
    with pytest.raises(ValueError, match=r"a student of few steps, .* use its teacher, "):
        edit.edit(made.path, tmp_path / "in.png", tmp_path / "out.png", source="1", target="2")


def test_an_unknown_method_is_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match="unknown method 'magic': one of reflow, progressive"):
        distil.train(teacher, tmp_path / "x", method="magic", **BRIEF)
    with pytest.raises(ValueError, match="unknown method 'magic': one of pds, dds, sds"):
        edit.edited(tiny(), torch.zeros(1, 1, 8, 8), source="1", target="2", method="magic")
    assert cli.main
