"""The documents: the generated table of settings, and the checks of links and words that `make check` runs."""
