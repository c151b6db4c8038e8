"""Upstream's own modules (chatterbox-tts 0.1.7) at the sizes of a checkpoint, with its weights loaded strictly.

Where upstream fixes a width, the module that it belongs to is replaced by upstream's same class at the right width.
"""

from __future__ import annotations

from typing import Any

import torch

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.dims import FlashDims, GPT2Dims, LlamaDims, ReferenceDims, S3GenDims, T3Dims

State = dict[str, torch.Tensor]


def t3(dims: T3Dims, state: State | None) -> Any:
    """Upstream's `T3` in eval mode on the CPU, float32; without a state as its constructor leaves it."""
    from chatterbox.models.t3 import T3
    from chatterbox.models.t3.modules.perceiver import Perceiver

    if isinstance(dims, GPT2Dims):
        module = T3(_gpt2_config(dims))
    else:
        assert isinstance(dims, LlamaDims)
        module = T3(_llama_config(dims))
        module.cond_enc.perceiver = Perceiver(dims.perceiver_queries, dims.hidden, dims.hidden, dims.perceiver_heads)
    if state is not None:
        module.load_state_dict(state, assign=True)
    return module.eval()


def flash_t3(dims: FlashDims, state: State | None) -> Any:
    """Upstream's `ChatterboxFlashT3` in eval mode on the CPU, float32."""
    from chatterbox.models.t3.modules.perceiver import Perceiver
    from chatterbox_flash.model import ChatterboxFlashT3

    module = ChatterboxFlashT3(_llama_config(dims), drf_block_size=dims.block)
    module.cond_enc.perceiver = Perceiver(dims.perceiver_queries, dims.hidden, dims.hidden, dims.perceiver_heads)
    if state is not None:
        module.load_state_dict(state, assign=True)
    return module.eval()


def _llama_config(dims: LlamaDims) -> Any:
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules.t3_config import T3Config

    class Config(T3Config):
        is_multilingual = False  # by which 0.1.7 chooses its alignment analyser, which the main branch no longer has

    config = Config(text_tokens_dict_size=dims.text_vocab)
    if dims != LlamaDims(text_vocab=dims.text_vocab):
        config.llama_config_name = f"Llama_{dims.hidden}x{dims.layers}"
        LLAMA_CONFIGS[config.llama_config_name] = LLAMA_CONFIGS["Llama_520M"] | {
            "hidden_size": dims.hidden,
            "intermediate_size": dims.intermediate,
            "num_hidden_layers": dims.layers,
            "num_attention_heads": dims.heads,
            "num_key_value_heads": dims.heads,
            "head_dim": dims.head_dim,
        }
        config.max_text_tokens, config.max_speech_tokens = dims.max_text_tokens, dims.max_speech_tokens
        config.speech_tokens_dict_size = dims.speech_vocab
        config.speech_cond_prompt_len = dims.prompt_tokens
    return config


def _gpt2_config(dims: GPT2Dims) -> Any:
    """As `tts_turbo.py` sets it; Nano's GPT-2 is that of the main branch's `llama_configs.py`."""
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules.t3_config import T3Config

    config = T3Config(text_tokens_dict_size=dims.text_vocab)
    config.llama_config_name = f"GPT2_{dims.hidden}x{dims.layers}"
    LLAMA_CONFIGS[config.llama_config_name] = LLAMA_CONFIGS["GPT2_medium"] | {
        "n_embd": dims.hidden,
        "hidden_size": dims.hidden,
        "n_inner": dims.intermediate,
        "n_head": dims.heads,
        "n_layer": dims.layers,
        "n_positions": dims.positions,
        "vocab_size": dims.text_vocab,
    }
    config.speech_tokens_dict_size = dims.speech_vocab
    config.input_pos_emb = None
    config.speech_cond_prompt_len = dims.prompt_tokens
    config.use_perceiver_resampler = False
    config.emotion_adv = False
    return config


def s3gen(dims: S3GenDims, reference: ReferenceDims, state: State) -> Any:
    """Upstream's `S3Gen` (reference encoders, flow and vocoder) in eval mode on the CPU, float32."""
    from chatterbox.models.s3gen import S3Gen
    from chatterbox.models.s3gen import s3gen as parts

    if dims == S3GenDims() and reference == ReferenceDims():
        module = S3Gen()
    else:
        module = S3Gen.__new__(S3Gen)
        torch.nn.Module.__init__(module)
        module.meanflow = dims.meanflow
        module.mel_extractor = parts.mel_spectrogram
        module.speaker_encoder = parts.CAMPPlus(memory_efficient=False)
        module.tokenizer = _tokenizer(reference)
        module.flow = flow(dims)
        module.mel2wav = mel2wav(dims)
        fade = torch.zeros(960)
        fade[480:] = (torch.cos(torch.linspace(torch.pi, 0, 480)) + 1) / 2
        module.register_buffer("trim_fade", fade, persistent=False)
    missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    assert set(missing) <= set(module.ignore_state_dict_missing)
    assert not unexpected
    return module.eval()


def tts(checkpoint: Checkpoint, *, t3_module: bool = True) -> Any:
    """Upstream's `ChatterboxTTS` of a checkpoint on the CPU. Without T3 it can only prepare conditionals."""
    from chatterbox.models.t3.modules.t3_config import T3Config
    from chatterbox.models.tokenizers import EnTokenizer
    from chatterbox.models.voice_encoder import VoiceEncoder
    from chatterbox.tts import ChatterboxTTS

    encoder = VoiceEncoder()
    encoder.load_state_dict(checkpoint.voice_encoder_state())
    dims = checkpoint.dims
    bare = torch.nn.Module()
    bare.hp = T3Config()
    return ChatterboxTTS(
        t3(dims.t3, checkpoint.t3_state()) if t3_module else bare,
        s3gen(dims.s3gen, dims.reference, checkpoint.s3gen_state()),
        encoder.eval(),
        EnTokenizer(str(checkpoint.tokenizer_path)),
        "cpu",
    )


def turbo(checkpoint: Checkpoint, *, t3_module: bool = True) -> Any:
    """Upstream's `ChatterboxTurboTTS` of a checkpoint, Turbo's or Nano's, on the CPU. Without T3 it can only prepare
    conditionals."""
    from chatterbox.models.voice_encoder import VoiceEncoder
    from chatterbox.tts_turbo import ChatterboxTurboTTS
    from transformers import AutoTokenizer

    encoder = VoiceEncoder()
    encoder.load_state_dict(checkpoint.voice_encoder_state())
    dims = checkpoint.dims
    assert isinstance(dims.t3, GPT2Dims)
    bare = torch.nn.Module()
    bare.hp = _gpt2_config(dims.t3)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_path.parent)
    tokenizer.pad_token = tokenizer.eos_token  # as its `from_local` does
    return ChatterboxTurboTTS(
        t3(dims.t3, checkpoint.t3_state()) if t3_module else bare,
        s3gen(dims.s3gen, dims.reference, checkpoint.s3gen_state()),
        encoder.eval(),
        tokenizer,
        "cpu",
    )


def flash(checkpoint: Checkpoint) -> Any:
    """Upstream's `ChatterboxFlashTTS` of a checkpoint on the CPU, float32."""
    from chatterbox.models.tokenizers import EnTokenizer
    from chatterbox.models.voice_encoder import VoiceEncoder
    from chatterbox_flash import ChatterboxFlashTTS

    encoder = VoiceEncoder()
    encoder.load_state_dict(checkpoint.voice_encoder_state())
    dims = checkpoint.dims
    assert isinstance(dims.t3, FlashDims)
    return ChatterboxFlashTTS(
        flash_t3(dims.t3, checkpoint.t3_state()),
        s3gen(dims.s3gen, dims.reference, checkpoint.s3gen_state()),
        encoder.eval(),
        EnTokenizer(str(checkpoint.tokenizer_path)),
        "cpu",
    )


def _tokenizer(dims: ReferenceDims) -> Any:
    from chatterbox.models.s3tokenizer import S3Tokenizer
    from s3tokenizer.model_v2 import AudioEncoderV2, FSQVectorQuantization

    module = S3Tokenizer()
    width, heads, layers = dims.tokenizer_state, dims.tokenizer_heads, dims.tokenizer_layers
    module.encoder = AudioEncoderV2(module.config.n_mels, width, heads, layers, 2, False)
    module.quantizer = FSQVectorQuantization(width, module.config.n_codebook_size)
    return module


def flow(dims: S3GenDims) -> Any:
    """Upstream's token-to-mel module."""
    from chatterbox.models.s3gen import s3gen as parts
    from chatterbox.models.s3gen.transformer.upsample_encoder import PreLookaheadLayer, Upsample1D
    from chatterbox.models.s3gen.transformer.upsample_encoder import UpsampleConformerEncoder as Encoder

    width = dims.encoder
    sizes = {
        "output_size": width,
        "attention_heads": dims.encoder_heads,
        "linear_units": dims.encoder_units,
        "input_size": width,
    }
    kinds = {
        "normalize_before": True,
        "input_layer": "linear",
        "pos_enc_layer_type": "rel_pos_espnet",
        "selfattention_layer_type": "rel_selfattn",
        "use_cnn_module": False,
        "macaron_style": False,
    }
    encoder = Encoder(num_blocks=dims.encoder_blocks, **sizes, **kinds)
    encoder.pre_lookahead_layer = PreLookaheadLayer(channels=width, pre_lookahead_len=3)
    encoder.up_layer = Upsample1D(channels=width, out_channels=width, stride=2)
    encoder.up_encoders = encoder.up_encoders[: dims.encoder_up_blocks]
    estimator = parts.ConditionalDecoder(
        in_channels=4 * dims.mel,
        out_channels=dims.mel,
        channels=[dims.decoder],
        attention_head_dim=dims.decoder_head_dim,
        n_blocks=dims.decoder_blocks,
        num_mid_blocks=dims.decoder_mid_blocks,
        num_heads=dims.decoder_heads,
        act_fn="gelu",
        meanflow=dims.meanflow,
    )
    decoder = parts.CausalConditionalCFM(spk_emb_dim=dims.mel, cfm_params=parts.CFM_PARAMS, estimator=estimator)
    return parts.CausalMaskedDiffWithXvec(
        input_size=width, output_size=dims.mel, vocab_size=dims.vocab, encoder=encoder, decoder=decoder
    )


def mel2wav(dims: S3GenDims) -> Any:
    """Upstream's vocoder."""
    from chatterbox.models.s3gen import s3gen as parts

    return parts.HiFTGenerator(
        base_channels=dims.hift,
        sampling_rate=parts.S3GEN_SR,
        upsample_rates=[8, 5, 3],
        upsample_kernel_sizes=[16, 11, 7],
        source_resblock_kernel_sizes=[7, 7, 11],
        source_resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        f0_predictor=parts.ConvRNNF0Predictor(cond_channels=dims.f0),
    )
