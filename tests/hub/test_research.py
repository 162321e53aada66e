"""Networks by other conventions answer what they would at home, and files that are programs are not run."""

import collections
import io
import pickle
import sys
import types
import zipfile

import pytest
import torch

import suffuse as sf
from suffuse import hub, oracle, samplers, schedules
from suffuse.training.files import ModelFileError

WORLD = oracle.Mixture([0.4, 0.6], torch.tensor([[-1.0, 0.5], [1.0, 0.2]]), 0.05)


def noise(n=64):
    return sf.noise((n, 2), seed=0)


def run(model, sampler=samplers.ddim, steps=20):
    return sf.sample(model, noise(), sampler=sampler, steps=steps)


# Conventions: a network of each form is the exact mixture; what it makes is what the mixture itself makes


@pytest.mark.parametrize("form", ["edm", "k-diffusion"])
def test_denoisers_of_sigma(form):
    world = WORLD.on(schedules.VE())

    def net(x, sigma):
        return WORLD.on(schedules.VE(sigma.max().item() + 1.0, power=1.0))(x, sigma / (sigma.max() + 1.0)).x0.to(x)

    torch.testing.assert_close(run(hub.load(net, form)), run(world), rtol=0, atol=2e-3)


def test_velocities_to_data_with_time_running_the_other_way():
    def net(x, s):
        p = WORLD(x, 1 - s)
        return (p.x0 - p.eps).to(x)

    torch.testing.assert_close(run(hub.load(net, "flow_matching")), run(WORLD), rtol=0, atol=1e-4)


@pytest.mark.parametrize("learned", [False, True])
def test_adm_is_told_the_index_and_may_answer_its_variance(learned):
    schedule = schedules.Discrete.ddpm()
    world, told = WORLD.on(schedule), []

    def net(x, index, y):
        told.append(index[0].item())
        eps = world(x, (index + 1) / 1000).eps.to(x)
        return torch.cat([eps, torch.ones_like(eps)], 1) if learned else eps

    model = hub.load(net, "adm", condition=["y"], variance="range" if learned else None).given(y=3)
    torch.testing.assert_close(run(model), run(world), rtol=0, atol=1e-3)
    assert told[0] == 999 and told == sorted(told, reverse=True)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_any_network_by_schedule_and_parameterization(predicts):
    schedule = schedules.Discrete.scaled_linear()
    world = WORLD.on(schedule)

    def net(x, index):
        t = (index + 1) / 1000
        p, (a, s) = world(x, t), schedule(t, like=x)
        return {"eps": p.eps, "x0": p.x0, "v": a * p.eps - s * p.x0}[predicts].to(x)

    torch.testing.assert_close(run(hub.load(net, schedule=schedule, predicts=predicts)), run(world), rtol=0, atol=2e-3)


def test_what_a_form_says_already():
    with pytest.raises(ValueError, match="form must be one of 'edm'"):
        hub.load(lambda x, t: x, "score_sde")
    with pytest.raises(ValueError, match="says what the network predicts"):
        hub.load(lambda x, t: x, "edm", predicts="eps")
    with pytest.raises(ValueError, match="says on which schedule it lives"):
        hub.load(lambda x, t: x, "flow_matching", schedule=schedules.VP())
    with pytest.raises(ValueError, match="say schedule= and predicts="):
        hub.load(lambda x, t: x)
    with pytest.raises(TypeError, match="fills a torch module, got function"):
        hub.load(lambda x, t: x, "edm", weights="x.pt")


# Files


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (exec, (f"open({str(self.target)!r}, 'w').write('owned')",))


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy"])
def test_a_malicious_pickle_executes_nothing(tmp_path, form):
    target, file = tmp_path / "owned", tmp_path / "model.pt"
    bad = {"weight": torch.ones(2), "x": Evil(target)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(bad))
    else:
        torch.save(bad, file, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ModelFileError, match=r"(?s)model\.pt .*not read.*(exec|refers|call)"):
        hub.tensors(file)
    assert not target.exists()
    if form == "pickle":  # the file is what it claims to be: read in earnest, it does write
        pickle.loads(file.read_bytes())
        assert target.exists()


def test_a_malicious_pickle_in_a_pipelines_folder_is_not_opened(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(ModelFileError, match="a pickle, which can run code"):
        hub.diffusers(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_class_to_import_in_a_json_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["evil_module", "Evil"]}')
    with pytest.raises(ValueError, match="the unet is Evil, supported is UNet2DModel"):
        hub.diffusers(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": ["evil_module", "Evil"]}')
    with pytest.raises(ValueError, match=r"is a \['evil_module', 'Evil'\]; supported are"):
        hub.diffusers(tmp_path)
    assert "evil_module" not in sys.modules


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save({"weight": torch.zeros(1 << 20)}, whole)
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        for part in source.infolist():
            bomb.writestr(part.filename, source.read(part))
    assert file.stat().st_size < 50_000
    with pytest.raises(ModelFileError, match=r"would unpack to 4\d{6}: torch.save never compresses"):
        hub.tensors(file)


def test_files_cut_short_and_missing(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save({"weight": torch.arange(1000.0)}, whole)
    for name, data in (("zip", whole.read_bytes()), ("pkl", pickle.dumps(collections.OrderedDict(a=[1, 2, 3])))):
        file = tmp_path / name
        file.write_bytes(data[:-10])
        with pytest.raises(ModelFileError, match="not a whole"):
            hub.tensors(file)
    with pytest.raises(ModelFileError, match="is missing"):
        hub.tensors(tmp_path / "nothing.pt")
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelFileError, match="holds no tensors"):
        hub.tensors(file)


def test_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "secret").write_text("{}")
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (folder / "model_index.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFileError, match="is a link out of the folder, to"):
        hub.diffusers(folder)
    cached = tmp_path / "models--a--b" / "snapshots" / "abc"  # as the Hugging Face cache keeps its files
    cached.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blob").write_text('{"_class_name": "Nothing"}')
    (cached / "model_index.json").symlink_to(tmp_path / "models--a--b" / "blob")
    with pytest.raises(ValueError, match="is a Nothing; supported are"):
        hub.diffusers(cached)


def test_state_dicts_are_read_by_key(tmp_path):
    file, weights = tmp_path / "adm.pt", {"a.weight": torch.randn(2, 3), "a.bias": torch.randn(2)}
    torch.save({"ema": weights, "step": 7}, file)
    found = hub.tensors(file, "ema")
    assert found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in weights)
    assert set(hub.tensors(file)) == {"ema.a.weight", "ema.a.bias"}
    with pytest.raises(ModelFileError, match="has no 'model': it has ema, step"):
        hub.tensors(file, "model")
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2)})
    hub.load(net, "edm", weights=file, key="ema")
    assert torch.equal(net["a"].weight, weights["a.weight"])
    with pytest.raises(ModelFileError, match="does not fit Linear: weights 2 missing"):
        hub.load(torch.nn.Linear(3, 2), "edm", weights=file, key="ema")


def test_edms_pickles_give_their_tensors_and_none_of_their_code(tmp_path):
    """They are objects of classes whose source code is in the file, to be run when it is read."""
    module = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("their code was run")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj

    class Saved(torch.nn.Sequential):
        def __reduce__(self):
            meta = {"type": "class", "module_src": "import os; os.abort()", "class_name": "Net", "state": self.__dict__}
            return _reconstruct_persistent_obj, (meta,)

    net = Saved(torch.nn.Linear(3, 4), Saved(torch.nn.Conv2d(1, 2, 3)), torch.nn.BatchNorm1d(4))
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), module
    try:
        data = io.BytesIO()
        pickle.dump({"ema": net, "loss_fn": None}, data)
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]
    file = tmp_path / "edm.pkl"
    file.write_bytes(data.getvalue())
    found = hub.tensors(file, "ema")
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[k], v) for k, v in net.state_dict().items())
    assert "torch_utils" not in sys.modules
