"""How many tokens of a text a pipeline's text encoders do not see."""

from typing import Any

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def tokenizers_of(pipe: Any) -> dict[str, Any]:
    """Return the pipeline's tokenizers by name. FLUX.2's is a processor: its tokenizer is inside."""
    found = {name: getattr(pipe, name, None) for name in TOKENIZERS}
    return {name: getattr(each, "tokenizer", each) for name, each in found.items() if each is not None}


def lost_tokens(pipe: Any, text: str, text_length: int | None, *, language_model: bool) -> int:
    """Return how many tokens at the end of ``text`` no text encoder sees.

    Args: text_length: tokens that the T5 encoder or the language model reads; None for the tokenizer's own limit.
    """
    losses = []
    for tokenizer in tokenizers_of(pipe).values():
        limited = language_model or "T5" in type(tokenizer).__name__
        limit = text_length if limited and text_length else tokenizer.model_max_length
        count = _tokens_in_template(pipe, tokenizer, text) if language_model else _tokens(tokenizer, text)
        losses.append(max(0, count - limit))
    return min(losses, default=0)


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, truncation=False)["input_ids"])


def _tokens_in_template(pipe: Any, tokenizer: Any, text: str) -> int:
    """Count the tokens of what a pipeline makes of ``text`` for its language model, as its ``encode_prompt`` does."""
    if hasattr(pipe, "prompt_template_encode"):  # Qwen-Image: the first tokens are cut off after encoding
        cut_off = int(pipe.prompt_template_encode_start_idx)
        return _tokens(tokenizer, pipe.prompt_template_encode.format(text)) - cut_off
    if hasattr(pipe, "system_prompt"):  # Lumina 2
        return _tokens(tokenizer, f"{pipe.system_prompt} <Prompt Start> {text}")
    if hasattr(pipe, "system_message"):  # FLUX.2 dev
        parts = {"system": pipe.system_message, "user": text}
        chat: Any = [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in parts.items()]
        return _tokens(tokenizer, pipe.tokenizer.apply_chat_template(chat, tokenize=False))
    if getattr(tokenizer, "chat_template", None):  # FLUX.2 klein, Z-Image
        chat = [{"role": "user", "content": text}]
        return _tokens(tokenizer, tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return _tokens(tokenizer, text)
