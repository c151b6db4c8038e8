"""Files for running the server: image, compose, systemd, monitoring; `python -m deploy.check` validates them."""
