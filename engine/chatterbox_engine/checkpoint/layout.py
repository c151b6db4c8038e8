"""Names and shapes of every tensor in a checkpoint's three weight files, from its sizes alone.

One table serves two purposes: `checkpoint` refuses a file that differs from it before anything is loaded, and
`random_checkpoint` writes files that follow it, without importing upstream (which takes 8 to 15 seconds).
The names are those of the state dicts of chatterbox-tts 0.1.7: `T3`, `S3Token2Wav` and `VoiceEncoder`.
"""

from __future__ import annotations

from collections.abc import Iterator

from chatterbox_engine.checkpoint.dims import Dims, GPT2Dims, LlamaDims, ReferenceDims, S3GenDims, T3Dims

Layout = dict[str, tuple[int, ...]]

RECOMPUTED = ("tokenizer._mel_filters", "tokenizer.window")
"""Constant buffers of the S3 tokenizer that upstream computes itself: a file may hold them or not."""

_Items = Iterator[tuple[str, tuple[int, ...]]]

_EMBED_TOKENS = 8  # rows of the Llama's own token table, which nothing reads
_VE_HIDDEN = 256
_VE_MELS = 40
_TOKENIZER_MELS = 128
_FSQ = 8
_FSMN_KERNEL = 31
_CAMP_GROWTH = 32
_CAMP_BOTTLENECK = 128
_CAMP_LAYERS = (12, 24, 16)
_HIFT_UPS = (16, 11, 7)  # kernel sizes
_HIFT_DOWNS = (30, 6, 1)
_HIFT_SOURCE_KERNELS = (7, 7, 11)
_HIFT_KERNELS = (3, 7, 11)
_HIFT_SPECTRUM = 18  # magnitude and phase of a 16-point transform
_HARMONICS = 9


def t3_layout(dims: T3Dims) -> Layout:
    """Contents of T3's file."""
    if isinstance(dims, GPT2Dims):
        return dict(_gpt2(dims))
    assert isinstance(dims, LlamaDims), f"no layout for {type(dims).__name__}"
    return dict(_llama(dims))


def s3gen_layout(dims: Dims) -> Layout:
    """Contents of S3Gen's file, without `RECOMPUTED`."""
    parts = {
        "tokenizer.": _tokenizer(dims.reference),
        "speaker_encoder.": _speaker_encoder(dims.s3gen),
        "flow.": _flow(dims.s3gen),
        "mel2wav.": _mel2wav(dims.s3gen),
    }
    return {prefix + name: shape for prefix, items in parts.items() for name, shape in items}


def voice_encoder_layout(dims: T3Dims) -> Layout:
    """Contents of the voice encoder's file."""
    return dict(_voice_encoder(dims))


def _within(prefix: str, items: _Items) -> _Items:
    return ((f"{prefix}.{name}", shape) for name, shape in items)


def _affine(prefix: str, *shape: int) -> _Items:
    """A weight and a bias along its first axis: a linear layer, a convolution or (one axis) a layer norm."""
    yield f"{prefix}.weight", shape
    yield f"{prefix}.bias", shape[:1]


def _llama(dims: LlamaDims) -> _Items:
    width = dims.hidden
    attention = dims.heads * dims.head_dim
    yield "tfmr.embed_tokens.weight", (_EMBED_TOKENS, width)
    for index in range(dims.layers):
        layer = f"tfmr.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj"):
            yield f"{layer}.self_attn.{name}.weight", (attention, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, attention)
        yield f"{layer}.mlp.gate_proj.weight", (dims.intermediate, width)
        yield f"{layer}.mlp.up_proj.weight", (dims.intermediate, width)
        yield f"{layer}.mlp.down_proj.weight", (width, dims.intermediate)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield "tfmr.norm.weight", (width,)
    yield from _affine("cond_enc.spkr_enc", width, dims.speaker_embed)
    yield "cond_enc.emotion_adv_fc.weight", (width, 1)
    yield "cond_enc.perceiver.pre_attention_query", (1, dims.perceiver_queries, width)
    yield from _affine("cond_enc.perceiver.attn.norm", width)
    for name in ("to_q", "to_k", "to_v", "proj_out"):
        yield from _affine(f"cond_enc.perceiver.attn.{name}", width, width)
    yield "text_emb.weight", (dims.text_vocab, width)
    yield "speech_emb.weight", (dims.speech_embeddings, width)
    yield "text_pos_emb.emb.weight", (dims.text_positions, width)
    yield "speech_pos_emb.emb.weight", (dims.speech_positions, width)
    yield "text_head.weight", (dims.text_vocab, width)
    yield "speech_head.weight", (dims.speech_vocab, width)


def _gpt2(dims: GPT2Dims) -> _Items:
    """Matrices of GPT-2's own layers are [inputs, outputs] (transformers' `Conv1D`)."""
    width, inner = dims.hidden, dims.heads * dims.head_dim
    yield "tfmr.wte.weight", (dims.text_vocab, width)
    yield "tfmr.wpe.weight", (dims.positions, width)
    for index in range(dims.layers):
        layer = f"tfmr.h.{index}"
        yield from _affine(f"{layer}.ln_1", width)
        yield from _conv1d(f"{layer}.attn.c_attn", width, 3 * inner)
        yield from _conv1d(f"{layer}.attn.c_proj", inner, width)
        yield from _affine(f"{layer}.ln_2", width)
        yield from _conv1d(f"{layer}.mlp.c_fc", width, dims.intermediate)
        yield from _conv1d(f"{layer}.mlp.c_proj", dims.intermediate, width)
    yield from _affine("tfmr.ln_f", width)
    yield from _affine("cond_enc.spkr_enc", width, dims.speaker_embed)
    yield "text_emb.weight", (dims.text_vocab, width)
    yield "speech_emb.weight", (dims.speech_vocab, width)
    yield "text_head.weight", (dims.text_vocab, width)
    yield from _affine("speech_head", dims.speech_vocab, width)


def _conv1d(prefix: str, inputs: int, outputs: int) -> _Items:
    yield f"{prefix}.weight", (inputs, outputs)
    yield f"{prefix}.bias", (outputs,)


def _voice_encoder(dims: T3Dims) -> _Items:
    yield "similarity_weight", (1,)
    yield "similarity_bias", (1,)
    for layer, inputs in enumerate((_VE_MELS, _VE_HIDDEN, _VE_HIDDEN)):
        gates = 4 * _VE_HIDDEN
        yield f"lstm.weight_ih_l{layer}", (gates, inputs)
        yield f"lstm.weight_hh_l{layer}", (gates, _VE_HIDDEN)
        yield f"lstm.bias_ih_l{layer}", (gates,)
        yield f"lstm.bias_hh_l{layer}", (gates,)
    yield from _affine("proj", dims.speaker_embed, _VE_HIDDEN)


def _tokenizer(dims: ReferenceDims) -> _Items:
    width = dims.tokenizer_state
    yield from _affine("encoder.conv1", width, _TOKENIZER_MELS, 3)
    yield from _affine("encoder.conv2", width, width, 3)
    for index in range(dims.tokenizer_layers):
        block = f"encoder.blocks.{index}"
        for name in ("query", "value", "out"):
            yield from _affine(f"{block}.attn.{name}", width, width)
        yield f"{block}.attn.key.weight", (width, width)
        yield f"{block}.attn.fsmn_block.weight", (width, 1, _FSMN_KERNEL)
        yield from _affine(f"{block}.attn_ln", width)
        yield from _affine(f"{block}.mlp.0", 4 * width, width)
        yield from _affine(f"{block}.mlp.2", width, 4 * width)
        yield from _affine(f"{block}.mlp_ln", width)
    yield from _affine("quantizer._codebook.project_down", _FSQ, width)


def _batch_norm(prefix: str, width: int, affine: bool = True) -> _Items:
    if affine:
        yield from _affine(prefix, width)
    yield f"{prefix}.running_mean", (width,)
    yield f"{prefix}.running_var", (width,)
    yield f"{prefix}.num_batches_tracked", ()


def _speaker_encoder(dims: S3GenDims) -> _Items:
    """CAMPPlus: a small 2-D front, then three blocks of densely connected time-delay layers."""
    yield from _within("head", _camp_front())
    width = 128
    yield "xvector.tdnn.linear.weight", (width, _CAMP_GROWTH * dims.mel // 8, 5)
    yield from _batch_norm("xvector.tdnn.nonlinear.batchnorm", width)
    for block, layers in enumerate(_CAMP_LAYERS, start=1):
        for layer in range(1, layers + 1):
            yield from _within(f"xvector.block{block}.tdnnd{layer}", _camp_dense(width))
            width += _CAMP_GROWTH
        yield from _batch_norm(f"xvector.transit{block}.nonlinear.batchnorm", width)
        yield f"xvector.transit{block}.linear.weight", (width // 2, width, 1)
        width //= 2
    yield from _batch_norm("xvector.out_nonlinear.batchnorm", width)
    yield "xvector.dense.linear.weight", (dims.speaker_embed, 2 * width, 1)
    yield from _batch_norm("xvector.dense.nonlinear.batchnorm", dims.speaker_embed, affine=False)


def _camp_front() -> _Items:
    width = _CAMP_GROWTH
    yield "conv1.weight", (width, 1, 3, 3)
    yield from _batch_norm("bn1", width)
    for block in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
        for index in (1, 2):
            yield f"{block}.conv{index}.weight", (width, width, 3, 3)
            yield from _batch_norm(f"{block}.bn{index}", width)
        if block.endswith("0"):
            yield f"{block}.shortcut.0.weight", (width, width, 1, 1)
            yield from _batch_norm(f"{block}.shortcut.1", width)
    yield "conv2.weight", (width, width, 3, 3)
    yield from _batch_norm("bn2", width)


def _camp_dense(width: int) -> _Items:
    yield from _batch_norm("nonlinear1.batchnorm", width)
    yield "linear1.weight", (_CAMP_BOTTLENECK, width, 1)
    yield from _batch_norm("nonlinear2.batchnorm", _CAMP_BOTTLENECK)
    yield "cam_layer.linear_local.weight", (_CAMP_GROWTH, _CAMP_BOTTLENECK, 3)
    yield from _affine("cam_layer.linear1", _CAMP_BOTTLENECK // 2, _CAMP_BOTTLENECK, 1)
    yield from _affine("cam_layer.linear2", _CAMP_GROWTH, _CAMP_BOTTLENECK // 2, 1)


def _flow(dims: S3GenDims) -> _Items:
    width = dims.encoder
    yield "input_embedding.weight", (dims.vocab, width)
    yield from _affine("spk_embed_affine_layer", dims.mel, dims.speaker_embed)
    yield from _affine("encoder_proj", dims.mel, width)
    for name in ("embed", "up_embed"):
        yield from _affine(f"encoder.{name}.out.0", width, width)
        yield from _affine(f"encoder.{name}.out.1", width)
    yield from _affine("encoder.after_norm", width)
    yield from _affine("encoder.pre_lookahead_layer.conv1", width, width, 4)
    yield from _affine("encoder.pre_lookahead_layer.conv2", width, width, 3)
    yield from _affine("encoder.up_layer.conv", width, width, 5)
    for name, blocks in (("encoders", dims.encoder_blocks), ("up_encoders", dims.encoder_up_blocks)):
        for index in range(blocks):
            yield from _within(f"encoder.{name}.{index}", _conformer(dims))
    yield from _within("decoder.estimator", _estimator(dims))


def _conformer(dims: S3GenDims) -> _Items:
    width = dims.encoder
    for name in ("pos_bias_u", "pos_bias_v"):
        yield f"self_attn.{name}", (dims.encoder_heads, width // dims.encoder_heads)
    for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
        yield from _affine(f"self_attn.{name}", width, width)
    yield "self_attn.linear_pos.weight", (width, width)
    yield from _affine("feed_forward.w_1", dims.encoder_units, width)
    yield from _affine("feed_forward.w_2", width, dims.encoder_units)
    yield from _affine("norm_ff", width)
    yield from _affine("norm_mha", width)


def _estimator(dims: S3GenDims) -> _Items:
    width, inputs = dims.decoder, 4 * dims.mel  # noisy mel, encoder output, speaker, prompt
    yield from _affine("time_mlp.linear_1", 4 * width, inputs)
    yield from _affine("time_mlp.linear_2", 4 * width, 4 * width)
    if dims.meanflow:
        yield "time_embed_mixer.weight", (4 * width, 8 * width)
    stages = {"down_blocks.0": inputs, "up_blocks.0": 2 * width}
    stages |= {f"mid_blocks.{index}": width for index in range(dims.decoder_mid_blocks)}
    for stage, channels in stages.items():
        yield from _within(f"{stage}.0", _resnet(width, channels))
        for index in range(dims.decoder_blocks):
            yield from _within(f"{stage}.1.{index}", _transformer(dims))
        if not stage.startswith("mid"):
            yield from _affine(f"{stage}.2", width, width, 3)
    yield from _affine("final_block.block.0", width, width, 3)
    yield from _affine("final_block.block.2", width)
    yield from _affine("final_proj", dims.mel, width, 1)


def _resnet(width: int, inputs: int) -> _Items:
    yield from _affine("mlp.1", width, 4 * width)
    for block, channels in (("block1", inputs), ("block2", width)):
        yield from _affine(f"{block}.block.0", width, channels, 3)
        yield from _affine(f"{block}.block.2", width)
    yield from _affine("res_conv", width, inputs, 1)


def _transformer(dims: S3GenDims) -> _Items:
    width, attention = dims.decoder, dims.decoder_heads * dims.decoder_head_dim
    yield from _affine("norm1", width)
    for name in ("to_q", "to_k", "to_v"):
        yield f"attn1.{name}.weight", (attention, width)
    yield from _affine("attn1.to_out.0", width, attention)
    yield from _affine("norm3", width)
    yield from _affine("ff.net.0.proj", 4 * width, width)
    yield from _affine("ff.net.2", width, 4 * width)


def _weight_norm(prefix: str, *shape: int, outputs: int | None = None) -> _Items:
    """A convolution under weight norm: its gain per first axis, its direction, its bias."""
    yield f"{prefix}.bias", (outputs or shape[0],)
    yield f"{prefix}.parametrizations.weight.original0", (shape[0], 1, 1)
    yield f"{prefix}.parametrizations.weight.original1", shape


def _res_block(width: int, kernel: int) -> _Items:
    for index in range(3):
        for convs, activations in (("convs1", "activations1"), ("convs2", "activations2")):
            yield from _weight_norm(f"{convs}.{index}", width, width, kernel)
            yield f"{activations}.{index}.alpha", (width,)


def _mel2wav(dims: S3GenDims) -> _Items:
    width = dims.hift
    yield from _affine("m_source.l_linear", 1, _HARMONICS)
    yield from _weight_norm("conv_pre", width, dims.mel, 7)
    for stage in range(3):
        half = width // 2
        yield from _weight_norm(f"ups.{stage}", width, half, _HIFT_UPS[stage], outputs=half)
        yield from _affine(f"source_downs.{stage}", half, _HIFT_SPECTRUM, _HIFT_DOWNS[stage])
        yield from _within(f"source_resblocks.{stage}", _res_block(half, _HIFT_SOURCE_KERNELS[stage]))
        for index, kernel in enumerate(_HIFT_KERNELS):
            yield from _within(f"resblocks.{3 * stage + index}", _res_block(half, kernel))
        width = half
    yield from _weight_norm("conv_post", _HIFT_SPECTRUM, width, 7)
    for index in range(5):
        inputs = dims.mel if index == 0 else dims.f0
        yield from _weight_norm(f"f0_predictor.condnet.{2 * index}", dims.f0, inputs, 3)
    yield from _affine("f0_predictor.classifier", 1, dims.f0)
