"""OpenAI's speech API for a chatterbox-triton server."""
