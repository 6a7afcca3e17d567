"""A tiny causal language model in a real format, with given answers."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD = "<end>", "<pad>"
CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[answer]{% endif %}"
)


def make_tiny_model(folder: Path, *, chat: bool = True, pad: bool = True, answers: tuple[str, ...] = ()) -> Path:
    """Write a Llama of two layers and 16 channels with random weights over single characters.

    ``answers``: texts that are single tokens, which the model generates instead of characters.
    """
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    words = [END, PAD, "<unk>", *characters, *answers]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        unk_token="<unk>",
        **({"pad_token": PAD} if pad else {}),
        **({"chat_template": CHAT} if chat else {}),
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=2048,
            eos_token_id=0,
            bos_token_id=None,
            pad_token_id=1 if pad else None,
            tie_word_embeddings=False,
        )
    )
    if answers:  # the last channel is a constant that raises the scores of answers and of the end token
        with torch.no_grad():
            model.lm_head.weight.mul_(5.0)
            speak(model, len(words), len(answers))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def speak(model: LlamaForCausalLM, words: int, answers: int) -> None:
    """Make the model generate one of its answers and then end.

    The first channel marks answer tokens. The layers' outputs are zeroed, so that the channel reaches the output.
    """
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight[:, 0] = -10.0
    model.model.embed_tokens.weight[words - answers :, 0] = 10.0
    model.lm_head.weight[:, 0] = 0.0
    model.lm_head.weight[0, 0] = 20.0
    model.lm_head.weight[words - answers :, 0] = -20.0
