"""The Helm chart of many servers, and its checks."""
