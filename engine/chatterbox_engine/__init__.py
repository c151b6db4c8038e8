"""Chatterbox text-to-speech as a continuous-batching engine. Imports no Triton."""
