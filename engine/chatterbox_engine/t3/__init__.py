"""T3, text to speech tokens: the two backbones, their KV cache, sampling, and the runner of a step."""
