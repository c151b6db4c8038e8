"""The request and response forms of other services, each a thin translation to `speech.Speaker`."""
