"""Text to what T3 reads: normalisation, splitting, tokenizers of each family."""
