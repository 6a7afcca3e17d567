"""Generating pairs with the back end takes little longer than the bare pipeline, and much less than single images.

Reference 1: a bare loop over the same diffusers pipeline with the same batches, the same texts and a generator per
image. It returns and keeps PIL images, the library's default. Reference 2: two calls per pair, one per image, as in
simple scripts. The three take turns. A ratio is magicseg's rate over the reference's in the same turn; the table
shows medians over the turns. Random weights do not affect the time: ``tiny`` is a small UNet, ``sd15`` has the sizes
of Stable Diffusion 1.5 (860 M, 123 M and 84 M parameters; no safety checker on any side). Nothing is downloaded.

    python benchmarks/generate.py
    python benchmarks/generate.py --model sd15 --device cuda --dtype float16 --size 512 --steps 20 --batch-size 8
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoPipelineForText2Image, DDIMScheduler, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as UNet
from measure import peak_mib, print_table, timed
from random_models import write_pipeline
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.tiny_pipelines import clip_tokenizer  # random_models has made the tests' helpers importable
from magicseg.backends import GenerateRequest, ImagePair
from magicseg.labels import Label
from magicseg.stages.generate.counterfactual_caption import counterfactual_caption
from magicseg.stages.generate.diffusion import DiffusersGenerator

CAT = Label(id=1, name="cat")
CAPTION = "a photo of a small red cat on a beach at noon, with hills behind it and number {} on a sign"


def _build_tiny(folder: Path, dtype: torch.dtype) -> Path:
    """Write a checkpoint of a small UNet with random weights and return its folder."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "tokenizer")
    size = len(tokenizer)
    text = CLIPTextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    unet = UNet(
        sample_size=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        text_encoder=CLIPTextModel(text).to(dtype),
        unet=unet.to(dtype),
        vae=vae.to(dtype),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def _bare(pipe: Any, requests: Sequence[GenerateRequest], batch: int, arguments: dict[str, Any]) -> list[Any]:
    """Call the library with batches of ``batch`` pairs; with single images if ``batch`` is 0."""
    images: list[Any] = []
    texts = [(request.caption, str(counterfactual_caption(request, "replace"))) for request in requests]
    seeds = [request.seed for request in requests]
    if batch == 0:
        for pair, seed in zip(texts, seeds, strict=True):
            for text in pair:
                generator = torch.Generator("cpu").manual_seed(seed)
                images += pipe(text, generator=generator, **arguments).images
        return images
    for start in range(0, len(requests), batch):
        rows = texts[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[start : start + batch] * 2]
        prompts = [text for text, _ in rows] + [text for _, text in rows]
        images += pipe(prompts, generator=generators, **arguments).images
    return images


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["tiny", "sd15"], default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--batch-size", type=int, default=8, help="pairs")
    parser.add_argument("--pairs", type=int, default=16, help="in one turn; a multiple of the batch size")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--compile", action="store_true", help="magicseg only")
    arguments = parser.parse_args()
    if arguments.pairs % arguments.batch_size:
        parser.error("--pairs must be a multiple of --batch-size")
    requests = [
        GenerateRequest(index=i, labels=(CAT,), caption=CAPTION.format(i), counterfactual="", seed=i)
        for i in range(arguments.pairs)
    ]
    dtype = getattr(torch, arguments.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.model == "tiny":
            folder = _build_tiny(Path(temporary), dtype)
        else:
            folder = write_pipeline(arguments.model, Path(temporary), dtype, arguments.device)
        backend = DiffusersGenerator(
            SimpleNamespace(size=arguments.size, batch_size=arguments.batch_size),
            DiffusersGenerator.Options(
                model=str(folder),
                device=arguments.device,
                dtype=arguments.dtype,
                steps=arguments.steps,
                guidance=arguments.guidance,
                noise="shared",
                cpu_threads=arguments.threads,
                compile=arguments.compile,
                min_contrast=0,
                retries=0,
            ),
        )
        bare = AutoPipelineForText2Image.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        bare.to(arguments.device)
        bare.set_progress_bar_config(disable=True)
    call = {
        "height": arguments.size,
        "width": arguments.size,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
    }

    def back_end_pairs() -> None:
        answers = backend.generate(requests)
        if not all(isinstance(answer, ImagePair) for answer in answers):
            raise RuntimeError(f"not all pairs were generated: {answers}")

    turns: dict[str, Callable[[], object]] = {
        "back end": back_end_pairs,
        "bare loop, same batches": lambda: _bare(bare, requests, arguments.batch_size, call),
        "image by image": lambda: _bare(bare, requests, 0, call),
    }
    for turn in turns.values():
        turn()
    seconds = [{name: timed(turn) for name, turn in turns.items()} for _ in range(arguments.repeats)]
    rows = []
    for name in turns:
        rate = statistics.median(arguments.pairs / turn[name] for turn in seconds)
        ratio = statistics.median(turn[name] / turn["back end"] for turn in seconds)
        rows.append([name, rate, 2 * rate, ratio])
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} threads"
    print_table(
        f"{arguments.model}, {arguments.size} px, {arguments.steps} steps, {arguments.batch_size} pairs a batch, "
        f"{arguments.dtype}, {where} (median of {arguments.repeats} turns of {arguments.pairs} pairs)",
        ["", "pairs/s", "images/s", "our rate over it"],
        rows,
    )
    print(f"peak resident memory {peak_mib():,.0f} MiB", end="")
    if arguments.device == "cuda":
        print(f", on the GPU {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB (both pipelines)", end="")
    print()


if __name__ == "__main__":
    main()
