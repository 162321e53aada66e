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


def clip_config(words, **config):
    return transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
        **config,
    )


def loud(encoder):
    """With larger weights, so that prompts tell."""
    for parameter in encoder.parameters():
        parameter.data.mul_(3.0)
    return encoder.eval()


def t5(folder):
    """A T5 encoder and its tokenizer over letters and two words."""
    letters = [(f"▁{c}", -4.0) for c in string.ascii_lowercase + string.digits]
    plain = [(c, -5.0) for c in string.ascii_lowercase + string.digits]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁cat", -1.0), *letters, *plain]
    tokenizer = transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
    encoder = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=len(vocab), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return encoder.eval(), tokenizer


def vae(**config):
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


def spread(net, scale=1.0, seed=3):
    """A transformer with no weight at zero: fresh ones are, and would answer the same to everything."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        size = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data += scale * size * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def saved(pipe, folder):
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion(folder, scheduler, old_tokenizer=True, **config):
    """A Stable Diffusion, saved; the pipeline itself is returned."""
    torch.manual_seed(2)
    words = tokenizer(folder / "words")
    encoder = loud(transformers.CLIPTextModel(clip_config(words)))
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
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(),
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


def sdxl(folder, scheduler, deep=False):
    """A Stable Diffusion XL of two levels, or three as published ones have; saved, and returned."""
    torch.manual_seed(2)
    words = tokenizer(folder.parent / f"{folder.name}-words")
    tokens = transformers.CLIPTokenizer.from_pretrained(folder.parent / f"{folder.name}-words")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32)[: 2 + deep],
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (1 + deep)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (1 + deep), "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(force_upcast=False),
        text_encoder=loud(transformers.CLIPTextModel(clip_config(words))),
        text_encoder_2=loud(transformers.CLIPTextModelWithProjection(clip_config(words, projection_dim=12))),
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )
    return saved(pipe, folder)


def sd3(folder, scheduler, long=True, channels=4):
    """A Stable Diffusion 3, saved, with T5 or without; the pipeline itself is returned."""
    torch.manual_seed(2)
    words = tokenizer(folder.parent / f"{folder.name}-words")
    tokens = transformers.CLIPTokenizer.from_pretrained(folder.parent / f"{folder.name}-words")
    encoder, tokens3 = t5(folder) if long else (None, None)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=24,
        out_channels=channels,
        pos_embed_max_size=16,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.06, scaling_factor=1.5, latent_channels=channels),
        text_encoder=loud(transformers.CLIPTextModelWithProjection(clip_config(words, projection_dim=12))),
        text_encoder_2=loud(transformers.CLIPTextModelWithProjection(clip_config(words, projection_dim=12))),
        text_encoder_3=encoder,
        tokenizer=tokens,
        tokenizer_2=tokens,
        tokenizer_3=tokens3,
        transformer=spread(transformer, 0.5),
        scheduler=scheduler,
    )
    return saved(pipe, folder)


def flux(folder, scheduler, distilled=True):
    """A Flux, saved: dev, or without distilled guidance schnell; the pipeline itself is returned."""
    torch.manual_seed(2)
    words = tokenizer(folder.parent / f"{folder.name}-words")
    encoder, tokens2 = t5(folder)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = diffusers.FluxPipeline(
        vae=vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=loud(transformers.CLIPTextModel(clip_config(words))),
        text_encoder_2=encoder,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder.parent / f"{folder.name}-words"),
        tokenizer_2=tokens2,
        transformer=spread(transformer, 0.5),
        scheduler=scheduler,
    )
    return saved(pipe, folder)


def dit(folder, scheduler, variance=True):
    """A DiT, saved; the pipeline itself is returned."""
    torch.manual_seed(2)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8 if variance else 4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_embeds_ada_norm=1000,
    )
    return saved(diffusers.DiTPipeline(spread(transformer, 0.5), vae(), scheduler), folder)


def pixart(folder, scheduler, sigma=False, sizes=False):
    """A PixArt alpha or sigma, saved; the pipeline itself is returned."""
    torch.manual_seed(2)
    encoder, tokens = t5(folder)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        cross_attention_dim=24,
        caption_channels=32,
        use_additional_conditions=sizes,
    )
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    pipe = kind(
        tokenizer=tokens, text_encoder=encoder, vae=vae(), transformer=spread(transformer, 0.5), scheduler=scheduler
    )
    return saved(pipe, folder)
