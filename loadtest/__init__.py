"""Load tests of a running server, with Locust. Start with `make loadtest` or `python -m loadtest`."""
