"""Requests to audio: scheduling, decoding, chunks of streams, vocoding, joining."""
