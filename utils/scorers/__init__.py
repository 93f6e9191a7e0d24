"""Scorers of completions: small, offline, and asked only once about the same text."""
