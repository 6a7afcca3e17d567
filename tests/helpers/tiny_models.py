"""Settings of untrained segmentation models that are tiny: built in milliseconds, run in a few more."""

from magicseg.config.model import EncoderSettings, ModelSettings

# Everything but the encoder.
TINY_DECODER = {"prompt_tokens": 1, "decoder_layers": 1, "decoder_width": 8, "decoder_heads": 2}


def tiny_settings(
    *,
    prompt_tokens: int = 1,
    decoder_layers: int = 1,
    decoder_width: int = 16,
    decoder_heads: int = 2,
    **encoder: int,
) -> ModelSettings:
    """Return a model's settings. Args: encoder: settings of the encoder, instead of the tiny ones here."""
    sizes = {"image_size": 32, "stride": 8, "width": 16, "layers": 1, "heads": 2, "embed_dim": 16}
    return ModelSettings(
        encoder=EncoderSettings.model_validate(sizes | encoder),
        prompt_tokens=prompt_tokens,
        decoder_layers=decoder_layers,
        decoder_width=decoder_width,
        decoder_heads=decoder_heads,
    )
