"""Tiny random pipelines, made with diffusers' own classes and saved as published models are."""

import json
import shutil
import string

import diffusers
import torch
import transformers

SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def unet2d(**config):
    torch.manual_seed(1)
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **config,
    )


def ddpm(folder, scheduler=None, pipeline=diffusers.DDPMPipeline, **config):
    """An unconditional pipeline, saved; the pipeline itself is returned."""
    pipe = pipeline(unet=unet2d(**config), scheduler=scheduler or diffusers.DDPMScheduler())
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tokenizer(folder):
    """CLIP's tokenizer over single letters, in the files of the published models (vocab.json and merges.txt)."""
    letters = string.ascii_lowercase + string.digits + "!"
    words = [*letters, *(c + "</w>" for c in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"})
    )
    return len(words)


def stable_diffusion(folder, scheduler, old_tokenizer=True, **config):
    """A Stable Diffusion, saved; the pipeline itself is returned."""
    torch.manual_seed(2)
    words = tokenizer(folder / "words")
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=words,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=words - 1,
        )
    ).eval()
    for parameter in encoder.parameters():  # so that prompts tell
        parameter.data.mul_(3.0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **config,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "words"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    if old_tokenizer:
        shutil.rmtree(folder / "tokenizer")
        shutil.move(folder / "words", folder / "tokenizer")
    pipe.set_progress_bar_config(disable=True)
    return pipe
