"""Pairs of images from tiny checkpoints: equal bits, shared noise, retries, truncation."""

import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image

from helpers.pair_requests import DOG, request
from helpers.tiny_pipelines import FAMILIES
from helpers.tiny_recent_pipelines import RECENT
from magicseg.backends import ImagePair, Rejection
from magicseg.core.errors import BackendError
from magicseg.stages.generate.diffusion import image_fault
from magicseg.stages.generate.families import SCHEDULERS


def equal(one, other):
    return np.array_equal(one.image, other.image) and np.array_equal(one.counterfactual, other.counterfactual)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_makes_pairs_and_repeats_them_to_the_bit(family, generator):
    backend = generator(family)
    requests = [request(index) for index in range(3)]
    pairs = backend.generate(requests)
    assert len(pairs) == 3
    for pair in pairs:
        for image in (pair.image, pair.counterfactual):
            assert image.shape == (32, 32, 3)
            assert image.dtype == np.uint8
        assert pair.quality["attempts"] == 1
    assert all(map(equal, pairs, backend.generate(requests))), "the same call, the same bits"
    assert all(map(equal, pairs, generator(family).generate(requests))), "loaded anew, the same bits"
    assert not any(np.array_equal(one.image, other.image) for one, other in pairwise(pairs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, "float32") for family in FAMILIES), ("sd15", "bfloat16"), ("flux", "bfloat16")]
)
def test_pixels_do_not_depend_on_where_the_shard_ends(family, dtype, generator):
    backend = generator(family, batch_size=3, dtype=dtype)
    whole = backend.generate([request(index) for index in range(5)])
    for count in (1, 2, 4):
        assert all(map(equal, whole, backend.generate([request(index) for index in range(count)])))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_pixels_are_those_of_the_bare_pipeline(family, generator, checkpoint):
    seeds = [7, 8]
    texts = ["a photo of a cat", "a dog on the red"]
    painted = generator(family, steps=3, batch_size=1, guidance=5.0).pipeline.paint(texts, seeds)
    bare = AutoPipelineForText2Image.from_pretrained(checkpoint(family), use_safetensors=True)
    bare.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = bare(texts, height=32, width=32, num_inference_steps=3, guidance_scale=5.0, generator=generators).images
    assert np.array_equal(painted.images, np.stack([np.asarray(image) for image in images]))


def fits(scheduler, family):
    return SCHEDULERS[scheduler][0].startswith("FlowMatch") == (family == "sd3")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_gives_a_sample_the_same_bits_in_any_company(scheduler, generator):
    family = next(family for family in ("sd2", "sd3") if fits(scheduler, family))
    backend = generator(family, scheduler=scheduler, steps=3)
    both = backend.generate([request(0), request(1)])
    other = backend.generate([request(5), request(1)])
    assert equal(both[1], other[1])
    assert not equal(both[0], other[0])


def watch_latents(backend):
    """The latents that each call's denoiser gets, step by step."""
    seen = []
    denoiser = getattr(backend.pipeline.pipe, "unet", None) or backend.pipeline.pipe.transformer

    def note(module, positional, named):
        latents = positional[0] if positional else named["hidden_states"]
        latents = torch.stack(latents) if isinstance(latents, list) else latents
        seen.append(latents.detach().clone())

    denoiser.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def halves(latents, pairs=2):
    """Positives and counterfactuals among the rows, without those of guidance."""
    rows = latents[-2 * pairs :]
    return rows[:pairs], rows[pairs:]


def by_step(seen, backend):
    """Join the latents of the calls of single pairs, where a family is called so."""
    if not backend.pipeline.family.one_pair:
        return seen
    one, other = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    return [torch.stack([a[0], b[0], a[1], b[1]]) for a, b in zip(one, other, strict=True)]


def one_call_per_step(family):
    """Return the options without which some families call their denoiser twice per step."""
    return {"guidance": 0.0} if family in RECENT else {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("noise", ["independent", "shared"])
def test_shared_noise_is_really_shared_and_independent_noise_is_not(family, noise, generator):
    backend = generator(family, noise=noise, **one_call_per_step(family))
    seen = watch_latents(backend)
    backend.generate([request(0), request(1)])
    positives, others = halves(by_step(seen, backend)[0])
    assert torch.equal(positives, others) == (noise == "shared")
    assert not torch.equal(positives[0], positives[1]), "two samples never share noise"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "sana_sprint"])  # it takes two steps
def test_the_first_steps_are_shared_and_the_later_ones_are_not(family, generator):
    backend = generator(family, noise="shared", steps=4, shared_steps=2, **one_call_per_step(family))
    seen = watch_latents(backend)
    pair = backend.generate([request(0), request(1)])[0]
    seen = by_step(seen, backend)
    if family == "sd15":  # its scheduler takes one step twice
        assert len(seen) == 5
    same = [torch.equal(*halves(latents)) for latents in seen]
    assert same[:3] == [True, True, True], "the noise, and what two steps made of it"
    assert not any(same[3:])
    assert not np.array_equal(pair.image, pair.counterfactual)


@pytest.mark.parametrize(("family", "option", "message"), [
    ("sana_sprint", {"steps": 3}, "Sana-Sprint takes 2"),
    ("flux2", {"negative_prompt": "a dog", "guidance": 4.0}, "FLUX.2 dev takes none"),
    ("qwen_image", {"inpaint": True}, "inpaint is not possible with Qwen-Image"),
])  # fmt: skip
def test_what_a_family_lacks_is_refused_by_its_name(family, option, message, generator, checkpoint):
    if "inpaint" in option:
        models = {name: {"backend": "transformers", "options": {"model": str(checkpoint(model)), "device": "cpu"}}
                  for name, model in (("detector", "owlv2"), ("segmenter", "sam2"))}  # fmt: skip
        option = {"counterfactual": "inpaint", "inpaint": models}
    with pytest.raises(BackendError, match=message):
        generator(family, **option)


def test_guidance_of_distilled_weights_is_refused(generator, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("flux2_klein"), tmp_path / "copy")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"is_distilled": false', '"is_distilled": true'))
    with pytest.raises(BackendError, match="are distilled and take none"):
        generator(folder, guidance=4.0)
    assert generator(folder, guidance=1.0).generate([request()])


@pytest.mark.parametrize("family", ["flux2", "flux2_klein", "qwen_image", "z_image", "lumina2", "sana"])
def test_words_that_a_language_model_does_not_see_are_counted_with_the_template(family, generator):
    backend = generator(family, text_length=512, batch_size=1, guidance=0.0)
    seen = []
    backend.pipeline.pipe.text_encoder.register_forward_pre_hook(
        lambda module, positional, named: seen.append(int(named["attention_mask"][0].sum())), with_kwargs=True
    )
    text = " ".join(["a red cat on the photo"] * 8)
    backend.pipeline.paint([text, "a"], [1, 2])
    dropped = backend.pipeline.pipe.prompt_template_encode_start_idx if family == "qwen_image" else 0
    assert seen[0] - dropped < 512
    assert backend.pipeline.lost_tokens(text) == 0
    assert generator(family, text_length=32, guidance=0.0).pipeline.lost_tokens(text) == seen[0] - dropped - 32


def test_a_family_that_is_not_known_is_called_as_the_options_say(generator, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("sd2"), tmp_path / "copy")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"StableDiffusionPAGPipeline"'))
    with pytest.raises(BackendError, match="StableDiffusionPAGPipeline, which this back end does not drive"):
        generator(folder)
    family = {"title": "Stable Diffusion with PAG", "arguments": {"pag_scale": 0.0}}
    other, plain = generator(folder, family=family), generator("sd2")
    assert type(other.pipeline.pipe).__name__ == "StableDiffusionPAGPipeline"
    assert equal(other.generate([request()])[0], plain.generate([request()])[0]), "without PAG it is the same"
    index.write_text(index.read_text().replace("StableDiffusionPAGPipeline", "NoSuchPipeline"))
    with pytest.raises(BackendError, match="NoSuchPipeline"):
        generator(folder, family=family)


def test_replace_and_rewrite_paint_different_counterfactuals_of_one_image(generator):
    replaced = generator(counterfactual="replace").generate([request()])[0]
    rewritten = generator(counterfactual="rewrite").generate([request()])[0]
    assert np.array_equal(replaced.image, rewritten.image)
    assert not np.array_equal(replaced.counterfactual, rewritten.counterfactual)


def test_a_caption_without_its_label_is_rejected_and_its_neighbours_are_not(generator):
    backend = generator(batch_size=3)
    answers = backend.generate([request(0), request(1, labels=(DOG,)), request(2)])
    assert answers[1].reason == "label-not-in-caption"
    assert equal(answers[0], backend.generate([request(0)])[0])
    assert isinstance(answers[2], ImagePair)


def test_a_prompt_beyond_the_text_encoder_is_counted(generator):
    long = "a photo of a red cat " * 20
    sd, both = generator("sd2"), generator("flux")
    assert sd.generate([request()])[0].quality["truncated_tokens"] == 0
    assert sd.generate([request(caption=long)])[0].quality["truncated_tokens"] >= 100 + 2 - 77
    assert both.generate([request(caption=long)])[0].quality["truncated_tokens"] == 0, "its T5 reads 512 tokens"
    assert generator("flux", text_length=32).generate([request(caption=long)])[0].quality["truncated_tokens"] > 0


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"flux", "lcm", "flux2", "flux2_klein", "sana_sprint"}))
def test_a_negative_prompt_changes_the_image_with_guidance(family, generator):
    plain, steered = (generator(family, negative_prompt=text).generate([request()])[0] for text in ("", "a dog on"))
    assert not equal(plain, steered)


def test_a_t5_tokenizer_that_is_only_a_sentencepiece_model_is_read(generator, checkpoint, tmp_path):
    sentencepiece_model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    folder = shutil.copytree(checkpoint("pixart_sigma"), tmp_path / "copy")
    backend = generator(folder)
    model = sentencepiece_model_pb2.ModelProto()
    pieces = backend.pipeline.pipe.tokenizer.get_vocab()
    for piece in sorted(pieces, key=pieces.get):
        model.pieces.add(piece=piece, score=-3.0, type={"<unk>": 2, "<pad>": 3, "</s>": 3}.get(piece, 1))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(model.SerializeToString())
    texts = ["a photo of a cat", "red dogs"]
    read = generator(folder).pipeline.pipe.tokenizer
    assert read(texts)["input_ids"] == backend.pipeline.pipe.tokenizer(texts)["input_ids"]


def spoil(backend, how, rows, calls):
    """Have some rows of the first calls spoilt."""
    paint = backend.pipeline.paint
    made = []

    def spoilt(texts, seeds):
        painted = paint(texts, seeds)
        made.append(list(seeds))
        if len(made) <= calls:
            for row in rows:
                how(painted, row)
        return painted

    backend.pipeline.paint = spoilt
    return made


def blacken(painted, row):
    painted.images[row] = 0


def flatten(painted, row):
    painted.images[row] = 128
    painted.images[row, 0, 0] = 130


def undefine(painted, row):
    painted.undefined[row] = True


def flag(painted, row):
    painted.unsafe[row] = True


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize(
    ("how", "reason"),
    [(blacken, "black-image"), (flatten, "flat-image"), (undefine, "black-image"), (flag, "unsafe-image")],
)
def test_a_bad_image_is_made_again_with_another_seed_and_counted(how, reason, row, generator):
    clean = generator().generate([request(0), request(1)])
    backend = generator()
    made = spoil(backend, how, [row], calls=1)
    first, second = backend.generate([request(0), request(1)])
    assert first.quality["attempts"] == 2
    assert first.quality[reason] == 1
    assert sum(first.quality[name] for name in ("black-image", "flat-image", "unsafe-image")) == 1
    assert not equal(first, clean[0]), "another seed"
    assert equal(second, clean[1]), "its neighbour is as if nothing had been"
    assert len(made) == 2
    assert made[0][0] != made[1][0]


def test_retries_end_in_a_rejection_with_its_reason(generator):
    backend = generator(retries=2)
    made = spoil(backend, blacken, [0], calls=99)
    answers = backend.generate([request(0), request(1)])
    assert answers[0] == Rejection(
        reason="black-image", detail="3 attempts: image black-image, image black-image, image black-image"
    )
    assert isinstance(answers[1], ImagePair)
    assert len(made) == 3


def test_the_checkpoints_own_safety_checker_is_heard(generator, checkpoint):
    backend = generator("sd15", retries=1)
    checker = backend.pipeline.pipe.safety_checker
    assert backend.generate([request()])[0].quality["unsafe-image"] == 0
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0)  # everything is like a concept
    assert backend.generate([request()])[0].reason == "unsafe-image"
    assert generator("sd15", safety_checker=False).pipeline.pipe.safety_checker is None


def test_undefined_values_are_seen_before_they_become_black(generator):
    backend = generator(retries=0)
    bias = backend.pipeline.pipe.vae.decoder.conv_out.bias
    torch.nn.init.constant_(bias, float("nan"))
    assert backend.generate([request()])[0].reason == "black-image"


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (np.zeros((8, 8, 3), np.uint8), "black-image"),
        (np.full((8, 8, 3), 255, np.uint8), "flat-image"),
        (np.tile(np.arange(8, dtype=np.uint8)[:, None, None] * 30, (1, 8, 3)), None),
    ],
)
def test_black_and_flat_images_are_told_from_others(image, fault):
    assert image_fault(image, 2.0) == fault


def test_half_precision_and_slicing_make_the_same_picture_in_other_bits(generator):
    plain = generator("sd15").generate([request()])[0]
    assert not equal(plain, generator("sd15", dtype="bfloat16").generate([request()])[0])
    sliced = generator("sd15", attention_slicing=True, vae_slicing=True).generate([request()])[0]
    assert np.abs(plain.image.astype(int) - sliced.image).max() <= 2


@pytest.mark.slow
def test_a_compiled_denoiser_repeats_its_bits(generator, quick_linker):
    if subprocess.run(["sh", "-c", "command -v g++"], capture_output=True, check=False).returncode:
        pytest.skip("torch.compile on the CPU needs g++")
    requests = [request(index) for index in range(3)]
    backend = generator("flux", compile=True)  # the one with the fewest kernels
    pairs = backend.generate(requests)
    assert all(map(equal, pairs, backend.generate(requests)))
    plain = generator("flux").generate(requests)
    assert np.abs(pairs[0].image.astype(int) - plain[0].image).max() <= 8


def test_without_the_libraries_the_error_says_how_to_install_them(checkpoint):
    code = f"""
import sys
sys.modules["diffusers"] = None
from types import SimpleNamespace
from magicseg.installed_backends import find_backend
from magicseg.core.errors import BackendError
kind = find_backend("generators", "diffusers")
try:
    kind(SimpleNamespace(size=32, batch_size=1), kind.Options(model={str(checkpoint("sd2"))!r}))
except BackendError as error:
    print(error, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "magicseg[models]" in done.stdout


@pytest.mark.slow
def test_regenerated_pairs_share_batches_and_have_the_pixels_that_they_have_alone(generator):
    asked = [request(index) for index in range(8)]
    limit = sorted(float(np.std(pair.image)) for pair in generator("sd15", batch_size=4).generate(asked))[3]
    backend = generator("sd15", batch_size=4, retries=20, min_contrast=limit)
    painted = backend.pipeline.paint
    calls = []

    def paint(texts, seeds):
        calls.append(len(texts))
        return painted(texts, seeds)

    backend.pipeline.paint = paint
    together = backend.generate(asked)
    calls_together = len(calls)
    alone = [backend.generate([one])[0] for one in asked]
    assert len(alone) < 2 * calls_together < len(calls), "fewer calls than pairs' attempts"
    for one, other in zip(together, alone, strict=True):
        assert equal(one, other)
        assert one.quality == other.quality
