"""Models in files: round trips, and one clear sentence for everything that may be wrong with a file."""

import json
import pickle

import pytest
import torch
from torch import nn

from suffuse import Denoiser, load, noise, save, schedules
from suffuse.nets import MLP, Autoencoder, DiT, Label, LatentCodec, Spatial, Tokens, UNet, Vector
from suffuse.parameterize import Parameterization
from suffuse.training import codecs
from suffuse.training.checkpoint import model_hash
from suffuse.training.files import ModelFileError, whole_folder
from suffuse.training.parallel import Peers

NETS = {
    "mlp": lambda: MLP(4, width=16, depth=2, conditions={"label": Label(3), "size": Vector(2)}),
    "unet": lambda: UNet(1, width=16, multipliers=(1, 2), conditions={"edges": Spatial(1, optional=True)}),
    "dit": lambda: DiT(1, patch=2, width=16, depth=1, heads=2, dims=1, conditions={"text": Tokens(8, vocab=20)}),
}
SHAPES = {"mlp": (2, 4), "unet": (2, 1, 8, 8), "dit": (2, 1, 8)}


def _made(name):
    net = NETS[name]()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return Denoiser(net.eval(), schedules.VP().shift(2.0), f"edm({1 / 3!r})")


@pytest.mark.parametrize("name", NETS)
def test_a_model_comes_back_as_it_was(name, tmp_path):
    model = _made(name)
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    x = noise(SHAPES[name], seed=0)
    with torch.no_grad():
        assert torch.equal(again(x, 0.4).x0, model(x, 0.4).x0)
    assert again.schedule == model.schedule and again.parameterization.name == f"edm({1 / 3!r})"
    assert again.conditions == model.conditions and not again.net.training
    first = model_hash(tmp_path / "m")
    save(model, tmp_path / "m")
    assert model_hash(tmp_path / "m") == first, "saving twice is the same bytes"


def test_the_codec_of_a_model_of_latents_comes_back_with_it(tmp_path):
    model = _made("dit")
    model.codec = LatentCodec(Autoencoder(1, 2, 8, (1, 2)), 0.7, -0.2)
    save(model, tmp_path / "m")
    again, x = load(tmp_path / "m"), noise((2, 1, 8, 8), seed=0)
    assert torch.equal(again.codec.encode(x, 5), model.codec.encode(x, 5))
    first = model_hash(tmp_path / "m")
    model.codec.scale = 0.8
    save(model, tmp_path / "m")
    assert model_hash(tmp_path / "m") != first, "other latents are another model"
    model.codec = None
    save(model, tmp_path / "m")
    assert load(tmp_path / "m").codec is None


def test_of_several_processes_the_first_writes_a_codec_and_the_others_wait(tmp_path, monkeypatch):
    codec, waited = LatentCodec(Autoencoder(1, 2, 8, (1, 2)), 0.7, -0.2), []
    monkeypatch.setattr(Peers, "word", lambda self, value: waited.append(self.index))
    for index in (1, 0):
        monkeypatch.setattr(codecs, "peers", lambda index=index: Peers(index, 2))
        codecs.save_codec(codec, tmp_path / "codec")
        assert (tmp_path / "codec").exists() == (index == 0)
    assert waited == [1, 0]


def test_a_codec_that_does_not_say_its_scale_is_named(tmp_path):
    codecs.save_codec(LatentCodec(Autoencoder(1, 2, 8, (1, 2)), 0.7, -0.2), tmp_path / "codec")
    about = json.loads((tmp_path / "codec" / "codec.json").read_text())
    del about["scale"], about["net"]
    (tmp_path / "codec" / "codec.json").write_text(json.dumps(about))
    with pytest.raises(ModelFileError, match=r"codec\.json does not say net, scale"):
        codecs.load_codec(tmp_path / "codec")


def test_a_learned_variance_comes_back(tmp_path):
    model = Denoiser(nn.Linear(2, 4), schedules.VP(), "eps", variance="range")
    save(model, tmp_path / "m")
    assert load(tmp_path / "m", net=nn.Linear(2, 4)).variance == "range"


def test_a_network_of_ones_own_is_passed_in(tmp_path):
    net = nn.Linear(2, 2)
    model = Denoiser(lambda x, t: x, schedules.Linear())
    with pytest.raises(TypeError, match="only a torch module can be saved"):
        save(model, tmp_path / "m")
    own = Denoiser(MLP(2), schedules.Linear(), Parameterization("v", lambda schedule, t, alpha, sigma: (1.0, 1.0)))
    with pytest.raises(TypeError, match="the parameterization 'v' is your own"):
        save(own, tmp_path / "m")
    model.net = net
    save(model, tmp_path / "m")
    with pytest.raises(ModelFileError, match=r"is a Linear, which suffuse cannot build by itself: pass load\(dir, net"):
        load(tmp_path / "m")
    assert torch.equal(load(tmp_path / "m", net=nn.Linear(2, 2)).net.weight, net.weight)


@pytest.fixture
def folder(tmp_path):
    save(_made("mlp"), tmp_path / "m")
    return tmp_path / "m"


def _edit(folder, **changes):
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | changes))


class TestOneClearSentence:
    def test_missing_folder(self, tmp_path):
        with pytest.raises(ModelFileError, match="no model folder at"):
            load(tmp_path / "nothing")

    def test_missing_file(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelFileError, match=r"model\.safetensors is missing"):
            load(folder)

    def test_truncated_weights(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ModelFileError, match="not a whole safetensors file"):
            load(folder)

    def test_a_pickle_is_refused_unread(self, folder, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ModelFileError, match="is a pickle"):
            load(folder)
        torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt")
        with pytest.raises(ModelFileError, match="is a pickle"):
            load(tmp_path / "old.pt")
        assert not (tmp_path / "ran").exists()

    def test_wrong_version(self, folder):
        _edit(folder, format=7)
        with pytest.raises(ModelFileError, match="has format 7, this suffuse reads 1"):
            load(folder)

    def test_unknown_schedule(self, folder):
        _edit(folder, schedule={"type": "Wavy"})
        with pytest.raises(ModelFileError, match="unknown schedule 'Wavy': one of Linear"):
            load(folder)

    def test_unknown_parameterization(self, folder):
        _edit(folder, predicts="vv")
        with pytest.raises(ValueError, match="unknown parameterization 'vv'"):
            load(folder)

    def test_unknown_argument(self, folder):
        about = json.loads((folder / "model.json").read_text())
        about["net"]["args"]["colour"] = 3
        _edit(folder, net=about["net"])
        with pytest.raises(ModelFileError, match=r"MLP does not take \['colour'\]"):
            load(folder)

    def test_weights_of_another_shape_and_other_names(self, folder):
        about = json.loads((folder / "model.json").read_text())
        about["net"]["args"]["depth"] = 3
        _edit(folder, net=about["net"])
        with pytest.raises(ModelFileError, match=r"does not fit MLP: weights .* missing"):
            load(folder)
        about["net"]["args"] |= {"depth": 2, "width": 32}
        _edit(folder, net=about["net"])
        with pytest.raises(ModelFileError, match="the network wants"):
            load(folder)

    def test_not_json(self, folder):
        (folder / "model.json").write_text("{")
        with pytest.raises(ModelFileError, match="is not JSON"):
            load(folder)


def test_what_was_there_stays_when_writing_fails(tmp_path):
    target = tmp_path / "kept"
    with whole_folder(target) as work:
        (work / "a.txt").write_text("first")
    with pytest.raises(OSError, match="disk is full"), whole_folder(target) as work:
        (work / "a.txt").write_text("second")
        raise OSError("disk is full")
    assert (target / "a.txt").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_was_being_replaced_when_the_machine_stopped_comes_back(folder, monkeypatch):
    import os

    rename = os.rename

    def stops(a, b):
        if str(b) == str(folder):
            raise KeyboardInterrupt
        rename(a, b)

    first = model_hash(folder)
    monkeypatch.setattr(os, "rename", stops)
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as work:
        (work / "model.json").write_text("{}")
    monkeypatch.undo()
    assert not folder.exists(), "the moment between the two renames"
    load(folder)
    assert model_hash(folder) == first
