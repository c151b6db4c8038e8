"""Tests of the gateway's page in Chromium."""
