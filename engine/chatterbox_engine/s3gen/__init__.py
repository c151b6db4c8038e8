"""Speech tokens to waveform, batched: conformer encoder, flow-matching UNet, HiFT vocoder."""

from chatterbox_engine.s3gen.model import PreparedVoice, S3Gen, VocoderJob
from chatterbox_engine.s3gen.noise import SourceNoise

__all__ = ["PreparedVoice", "S3Gen", "SourceNoise", "VocoderJob"]
