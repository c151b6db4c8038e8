"""OpenAI's speech API in front of a chatterbox-triton server; needs the extra `openai`."""
