"""What the Triton models exchange with callers: tensors, replies, the local socket, voice changes. No torch."""
