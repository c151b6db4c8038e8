"""Prometheus and Grafana for the server."""
