"""Voices: clips, what is computed from them, where it is kept, and finding the voice of a request."""
