"""Evaluation scripts."""
