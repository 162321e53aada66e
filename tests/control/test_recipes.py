"""The recipes on an untrained run: what is made, taken up again, opened and refused."""

from dataclasses import replace

import pytest
import torch

import suffuse as sf
from suffuse import pictures
from suffuse.nets import Autoencoder, LatentCodec
from suffuse.recipes import control, personalise, shapes
from suffuse.recipes.run import Run
from suffuse.training.files import ModelFileError
from tests.adapters.nets import said, spread

SHAPE = (8, 8, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = shapes.build("dit")
    spread(model.net, 0.02)
    model.codec = LatentCodec(Autoencoder(3, 8, 8, (1, 1, 1)))
    sf.save(model, folder / "model")
    Run(folder, "shapes", SHAPE, {"w": 2.0}, 0.0).write()
    return folder


@pytest.mark.slow
def test_two_controls_are_trained_opened_and_tied_to_their_base(base, tmp_path):
    how = {"steps": 2, "batch_size": 4, "watch_every": 0, "progress": False}
    control.train(base, tmp_path / "edges", kind="edges", **how)
    control.train(base, tmp_path / "pose", kind="pose", method="t2i", **how)
    again = control.train(base, tmp_path / "pose", kind="pose", method="t2i", resume=True, **how)
    assert again.settings["kind"] == "pose"
    model = control.opened(tmp_path / "edges", tmp_path / "pose")
    batch = control.scenes("pose", 5, torch.arange(2))
    assert (batch.attributes.shape == control.FIGURE).any(1).all()
    x = sf.noise((2, *SHAPE), seed=0)
    told = {kind: control.hint(kind, batch) for kind in ("edges", "pose")}
    plain = said(sf.load(base), x)
    assert torch.equal(said(model, x), plain) and not torch.equal(said(model.given(**told), x), plain)
    made = Run.open(tmp_path / "edges")
    replace(made, settings=made.settings | {"weights": "others"}).write()
    with pytest.raises(ModelFileError, match="was trained beside others, the base is now"):
        control.opened(tmp_path / "edges")
    with pytest.raises(ValueError, match="kind must be one of edges, soft_edges"):
        control.train(base, tmp_path / "x", kind="smell", **how)


@pytest.mark.slow
@pytest.mark.parametrize("method", personalise.METHODS)
def test_a_personal_model_is_a_run_like_any_other(base, tmp_path, method):
    images = sf.data.shapes.subject(0).images
    how = {"steps": 2, "batch_size": 2, "priors": 2, "progress": False, "method": method}
    made = personalise.train(base, tmp_path / "mine", images, token="[V]", noun="heart", **how)
    model = made.model()
    x = sf.noise((1, *SHAPE), seed=0)
    text = "a heart" if method == "style" else "a [v] on a striped pink background"
    before = sf.load(base).given(text=text.replace("[v]", "heart"))
    assert (said(model.given(text=text), x) - said(before, x)).abs().max() > 1e-6
    if method in ("inversion", "style"):
        file = tmp_path / "mine" / ("word" if method == "inversion" else "lora")
        load = sf.adapters.load_word if method == "inversion" else sf.adapters.load_lora
        again = load(sf.load(base), file.with_suffix(".safetensors"))
        torch.testing.assert_close(said(again.given(text=text), x), said(model.given(text=text), x), rtol=0, atol=1e-4)


def test_pictures_and_captions_of_a_folder(tmp_path):

    pictures.save_png(pictures.grid(torch.ones(1, 3, 8, 8), 1, gap=0), tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a white square\n")
    pictures.save_png(pictures.grid(-torch.ones(1, 3, 8, 8), 1, gap=0), tmp_path / "b.png")
    x, captions = personalise.pictures_in(tmp_path, 8)
    assert captions == ["a white square", None] and x[0].min() == 1 and x[1].max() == -1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no picture that can be read"):
        personalise.pictures_in(tmp_path / "empty", 8)
