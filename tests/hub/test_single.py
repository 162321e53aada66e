"""Checkpoints in one file, with the names of the code that trained them."""

import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

import suffuse as sf
from suffuse import hub, samplers
from suffuse.hub.lora import _ldm
from suffuse.training.files import ModelFileError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.hub import folders  # noqa: E402
from tests.hub.test_control import DDIM, PROMPTS, guided, leading, told  # noqa: E402
from tests.hub.test_parity import close  # noqa: E402
from tests.hub.test_research import Evil  # noqa: E402


def unet_names(unet):
    """Latent diffusion's names of a U-Net's weights."""
    for name, value in unet.state_dict().items():
        module, _, leaf = name.rpartition(".")
        new = _ldm(module, unet.config.layers_per_block).replace("conv_norm_out", "out.0")
        if "resnets" in module:
            new = new.replace("norm1", "in_layers.0").replace("norm2", "out_layers.0")
        yield f"model.diffusion_model.{new}.{leaf}", value


def vae_names(vae):
    """Latent diffusion's names of an autoencoder's weights; its attention is of 1 x 1 convolutions."""
    last = len(vae.config.block_out_channels) - 1
    changes = [
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"),
        (r"to_([qkv])", r"\1"),
        (r"to_out\.0", "proj_out"),
    ]
    for name, value in vae.state_dict().items():
        new = name
        for old, by in changes:
            new = re.sub(old, by, new)
        yield f"first_stage_model.{new}", value[..., None, None] if ".attn_1." in new and value.ndim == 2 else value


def clip_names(encoder, prefix):
    for name, value in encoder.state_dict().items():
        yield f"{prefix}.transformer.text_model.{name.removeprefix('text_model.')}", value
    yield f"{prefix}.transformer.text_model.embeddings.position_ids", torch.arange(77)[None]


def open_clip_names(encoder, prefix):
    """OpenCLIP's names, with the weights of query, key and value in one."""
    found = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    yield f"{prefix}.text_projection", found.pop("text_projection.weight").T.contiguous()
    yield f"{prefix}.token_embedding.weight", found.pop("embeddings.token_embedding.weight")
    yield f"{prefix}.positional_embedding", found.pop("embeddings.position_embedding.weight")
    short = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for name, value in found.items():
        new = name.replace("final_layer_norm", "ln_final").replace("encoder.layers", "transformer.resblocks")
        for a, b in (short | {"self_attn": "attn"}).items():
            new = new.replace(a, b)
        if ".q_proj." in name:
            parts = [found[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            yield f"{prefix}.{new.replace('q_proj.', 'in_proj_')}", torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            yield f"{prefix}.{new}", value


def as_one_file(pipe):
    tensors = dict(unet_names(pipe.unet)) | dict(vae_names(pipe.vae))
    if hasattr(pipe, "text_encoder_2"):
        tensors |= dict(clip_names(pipe.text_encoder, "conditioner.embedders.0"))
        tensors |= dict(open_clip_names(pipe.text_encoder_2, "conditioner.embedders.1.model"))
    else:
        tensors |= dict(clip_names(pipe.text_encoder, "cond_stage_model"))
    return {k: v.contiguous() for k, v in tensors.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("single")


@pytest.fixture(scope="module")
def made(root):
    """A pipeline, its weights in one file, and a folder of its configs and tokenizers without any weights."""
    done = {}

    def get(name):
        if name not in done:
            build = {"sd": folders.stable_diffusion, "xl": folders.sdxl}[name]
            pipe = build(root / name, DDIM)
            save_file(as_one_file(pipe), root / f"{name}.safetensors", {"format": "pt"})
            bare = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(root / name, root / f"{name}-bare", ignore=bare)
            done[name] = pipe, root / f"{name}.safetensors", root / f"{name}-bare"
        return done[name]

    return get


def weights(model):
    nets = [model.net.unet, model.codec.net, *(e.net for e in model.conditions["text"].encoders)]
    return {f"{i}.{k}": v for i, net in enumerate(nets) for k, v in net.state_dict().items()}


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_one_file_is_the_folder(made, root, name):
    pipe, file, bare = made(name)
    model, want = hub.diffusers(file, like=bare), weights(hub.diffusers(root / name))
    got = weights(model)
    assert got.keys() == want.keys() and all(torch.equal(got[k], v) for k, v in want.items())
    noise, options = told(pipe, model)
    mine = sf.sample(guided(model), noise, sampler=samplers.ddim, grid=leading(model))
    close(mine, pipe(PROMPTS, **options).images)
    if name == "sd":  # XL's two encoders are told apart by their widths there, which are the same here
        kind = diffusers.StableDiffusionPipeline
        theirs = kind.from_single_file(str(file), config=str(bare), local_files_only=True, scheduler=DDIM)
        theirs.set_progress_bar_config(disable=True)
        close(mine, theirs(PROMPTS, **options).images)


def test_parts_that_a_file_does_not_hold_are_the_folders(made, root, tmp_path):
    pipe, _, bare = made("sd")
    half = {k: 0.5 * v for k, v in unet_names(pipe.unet)}
    save_file(half, tmp_path / "unet.safetensors", {"format": "pt"})
    model = hub.diffusers(tmp_path / "unet.safetensors", like=root / "sd", dtype=torch.bfloat16)
    assert torch.equal(model.net.unet.conv_in.weight, (0.5 * pipe.unet.conv_in.weight).bfloat16())
    assert torch.equal(model.codec.net.encoder.conv_in.weight, pipe.vae.encoder.conv_in.weight.bfloat16())
    with pytest.raises(ModelFileError, match=r"text_encoder/model\.safetensors is missing"):
        hub.diffusers(tmp_path / "unet.safetensors", like=bare)


def test_a_pickled_file_is_read_without_running_it(made, tmp_path):
    pipe, _, bare = made("sd")
    torch.save({"state_dict": as_one_file(pipe), "global_step": 7}, tmp_path / "model.ckpt")
    assert torch.equal(hub.diffusers(tmp_path / "model.ckpt", like=bare).net.unet.conv_in.bias, pipe.unet.conv_in.bias)
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "owned")}))
    with pytest.raises(ModelFileError, match=r"evil\.ckpt holds more than tensors, and is not read"):
        hub.diffusers(tmp_path / "evil.ckpt", like=bare)
    assert not (tmp_path / "owned").exists()


def test_files_that_do_not_fit(made, tmp_path):
    pipe, file, bare = made("sd")
    with pytest.raises(ValueError, match="is one file: say like="):
        hub.diffusers(file)
    with pytest.raises(ModelFileError, match=r"nothing\.safetensors is missing"):
        hub.diffusers(tmp_path / "nothing.safetensors", like=bare)
    tensors = as_one_file(pipe)
    lost = "model.diffusion_model.input_blocks.0.0.bias"
    save_file({k: v for k, v in tensors.items() if k != lost}, tmp_path / "less.safetensors", {"format": "pt"})
    with pytest.raises(ModelFileError, match=r"1 weights of the unet are missing, the first is conv_in\.bias"):
        hub.diffusers(tmp_path / "less.safetensors", like=bare)
    save_file(tensors | {lost: torch.ones(3)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(ModelFileError, match=r"the unet does not fit .*config\.json"):
        hub.diffusers(tmp_path / "other.safetensors", like=bare)
