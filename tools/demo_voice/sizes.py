"""Sizes of the demo voice: an English checkpoint of some ten million parameters."""

from chatterbox_engine.checkpoint.dims import Dims, LlamaDims, ReferenceDims, S3GenDims

DIMS = Dims(
    LlamaDims(
        hidden=256,
        layers=4,
        heads=4,
        head_dim=64,
        intermediate=768,
        text_vocab=704,
        speech_vocab=6563,
        max_text_tokens=510,
        max_speech_tokens=1276,
        prompt_tokens=50,
    ),
    S3GenDims(
        encoder=256,
        encoder_heads=4,
        encoder_units=512,
        encoder_blocks=1,
        encoder_up_blocks=1,
        decoder=128,
        decoder_heads=2,
        decoder_blocks=1,
        decoder_mid_blocks=3,
        hift=128,
        f0=96,
    ),
    ReferenceDims(tokenizer_state=128, tokenizer_heads=2, tokenizer_layers=1),
    alignment_heads=((2, 1),),  # python -m tools.alignment, as its highest attention
    alignment_peak=0.929,
)

LIVE_DIGITS = 7
"""Of the eight ternary digits of a speech token; the last is always 1, so that 2,187 tokens are in use."""
