"""A model's parameters under the names of `helpers.reference_release`. No copies: gradients reach the model."""

_LAYER = {
    "q": "to_query",
    "k": "to_key",
    "v": "to_value",
    "out": "out",
    "up": "feed_forward.0",
    "down": "feed_forward.3",
    "norm1": "norm1",
    "norm2": "norm2",
}


def decoder_parameters(decoder):
    """Return the layers' parameters, and those of the query's input."""
    layers = [_named(layer, _LAYER) for layer in decoder.layers]
    return [*layers, _named(decoder, {"q": "to_query", "k": "to_key"})], _named(decoder, {"query": "query"})


def prompt_parameters(prompts):
    return {"tokens": prompts.tokens, **_named(prompts, {"projection": "projection", "norm": "norm"})}


def _named(module, names):
    return {
        f"{ours}.{kind}": getattr(module.get_submodule(theirs), kind)
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
