"""The captioner that runs an instruct language model in this process, with the transformers library."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.core.errors import BackendError
from magicseg.stages.describe.chat import ChatTemplate
from magicseg.stages.describe.writer import RECIPES, NoAnswer, Prompt, WritingOptions, write_descriptions
from magicseg.weights import PinnedSettings, Weights
from magicseg.weights.cache import location

RECIPE = 2  # incremented whenever the answers to the same prompts and seeds change
_BESIDE_GGUF = ("*.json", "*.jinja", "*.model", "*.txt")


class TransformersOptions(WritingOptions, PinnedSettings):
    """The model, its device, and the options of generation."""

    gguf_file: str | None = Field(None, description="the model's GGUF file, if it is stored in that format")
    device: Literal["cuda", "cpu", "mps"] = "cuda"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    cpu_threads: int = Field(1, ge=1, le=1024, description="threads on the CPU; they affect the last bits of results")
    repetition_penalty: float = Field(1.0, ge=1, le=2)
    chat_template_options: dict[str, Any] = Field(
        default_factory=dict, description="for the tokenizer's chat template, such as {enable_thinking: false}"
    )

    @field_validator("gguf_file")
    @classmethod
    def _inside_the_folder(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("/") or ".." in value.split("/") or not value.endswith(".gguf")):
            raise ValueError(f"must be the name of a .gguf file inside the model's folder, not {value!r}")
        return value


class TransformersCaptioner:
    """Back end of the describe stage: any causal language model that transformers supports.

    A sample's caption depends on its seed, and through rounding on its batch, because rows are padded to the longest
    prompt. A shard is always divided into the same batches. Batch size, device, dtype and threads are part of the
    fingerprint. So the same run gives the same captions.
    """

    Options = TransformersOptions
    LIBRARIES = ("torch", "transformers")

    @classmethod
    def identity(cls, options: TransformersOptions) -> Mapping[str, str | int]:
        """Return the numbers of all recipes."""
        return {"model": RECIPE, **RECIPES}

    @classmethod
    def weights(cls, options: TransformersOptions) -> list[Weights]:
        """Return the model with its tokenizer. For a GGUF file, select it and the configuration files beside it."""
        files = (options.gguf_file, *_BESIDE_GGUF) if options.gguf_file else ()
        return [Weights(setting="model", model=options.model, revision=options.revision, files=files)]

    def __init__(self, settings: object, options: TransformersOptions) -> None:
        self._options = options
        self._tokenizer, self._model = _load(options, location(self.weights(options)[0]))
        has_chat = self._tokenizer.chat_template is not None
        self._chat = ChatTemplate(self._tokenizer, options.chat_template_options) if has_chat else None

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Description | Rejection]:
        """Return one description per request."""
        return write_descriptions(requests, self._options, self._complete)

    def _complete(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        try:
            return self._answers(prompts)
        except BackendError:
            raise
        except Exception as error:  # otherwise the stage would retry samples singly, with different results
            raise self._explained(error, prompts) from error

    def _answers(self, prompts: Sequence[Prompt]) -> list[str | NoAnswer]:
        import torch

        from magicseg.stages.describe.sampling import SeededSampling

        options, tokenizer = self._options, self._tokenizer
        chat = self._chat is not None
        texts = [prompt.text for prompt in prompts]
        rendered = [f"{text}\n\n" for text in texts] if self._chat is None else self._chat.render(texts)
        inputs = tokenizer(
            rendered, padding=True, return_tensors="pt", add_special_tokens=not chat, return_token_type_ids=False
        ).to(options.device)
        length = inputs["input_ids"].shape[1]
        sampling = SeededSampling(
            [prompt.seed for prompt in prompts],
            prompt_length=length,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
        )
        with torch.inference_mode():
            output = self._model.generate(**inputs, logits_processor=[sampling])
        new = output[:, length:].tolist()
        ends = set(self._model.generation_config.eos_token_id)
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text if ends & set(row) else NoAnswer("cut-off") for text, row in zip(texts, new, strict=True)]

    def _explained(self, error: Exception, prompts: Sequence[Prompt]) -> BackendError:
        from magicseg.core.devices import is_out_of_memory, largest_fitting

        if not is_out_of_memory(error):
            return BackendError(
                f"the language model failed at a batch of {len(prompts)}: {type(error).__name__}: {error}",
                hint="committed shards are kept: run the same command again",
            )

        def attempt(size: int) -> None:
            try:
                self._answers(prompts[:size])
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise self._explained(error, prompts[:size]) from error

        fits = largest_fitting(len(prompts), attempt)
        if fits:
            hint = f"a batch of {fits} fits: --set describe.batch_size={fits} (it is part of the fingerprint)"
        else:
            hint = "not even one sample fits: a smaller model, dtype bfloat16, or fewer max_new_tokens"
        return BackendError(
            f"{self._options.device}: out of memory with {len(prompts)} prompts in a batch", hint=hint
        )


def _load(options: TransformersOptions, folder: Path) -> tuple[Any, Any]:
    """Load the tokenizer, with padding on the left, and the model in evaluation mode on its device."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    from magicseg.weights.pretrained import from_pretrained

    quieten: Any = logging.disable_progress_bar
    quieten()  # the stage shows its own progress bar
    _prepare(options)
    file = {"gguf_file": options.gguf_file} if options.gguf_file else {}
    tokenizer = _tried(
        options,
        lambda: from_pretrained(AutoTokenizer, folder, padding_side="left", **file),
    )
    model, info = _tried(
        options,
        lambda: from_pretrained(
            AutoModelForCausalLM, folder, dtype=getattr(torch, options.dtype), output_loading_info=True, **file
        ),
    )
    if info["missing_keys"]:
        raise BackendError(
            f"{options.model}: the weights lack {len(info['missing_keys'])} tensors of a "
            f"{type(model).__name__}, such as {min(info['missing_keys'])}",
            hint=_remedy(options),
        )
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise BackendError(
            f"{options.model}: neither model nor tokenizer defines the end of an answer (eos_token_id)",
            hint="choose an instruct model",
        )
    ends = ends if isinstance(ends, list) else [ends]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(ends[0])
    config: Any = GenerationConfig
    model.generation_config = config(
        do_sample=False,  # SeededSampling leaves only one token to choose
        max_new_tokens=options.max_new_tokens,
        repetition_penalty=options.repetition_penalty,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, model.to(options.device).eval()


def _prepare(options: TransformersOptions) -> None:
    import torch

    from magicseg.core.devices import prepare_device

    if options.device != "mps":
        prepare_device(options.device, options.cpu_threads, "describe.options.device")
    elif not torch.backends.mps.is_available():
        raise BackendError(
            "describe.options.device is mps, but torch finds no such device here",
            hint="run it where there is one, or set describe.options.device to cpu and dtype to float32",
        )


def _tried(options: TransformersOptions, load: Callable[[], Any]) -> Any:
    """Return the result of ``load``. Raises: BackendError with a hint if ``load`` raises any exception."""
    try:
        return load()
    except BackendError:
        raise
    except Exception as error:  # corrupt files raise errors of many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        needs_code = "trust_remote_code" in str(error)
        raise BackendError(
            f"{options.model}: no language model can be loaded: {lines[0]}",
            hint="code of a checkpoint is never run: choose a model that transformers itself supports"
            if needs_code
            else _remedy(options),
        ) from error


def _remedy(options: TransformersOptions) -> str:
    if options.revision is None:
        return "the folder needs config.json, tokenizer files and weights of a causal language model, or a GGUF file"
    return "is it a causal language model? to check its files: magicseg fetch RUN --verify"
