"""The methods that the paper compares G-SAE with, from their formulas."""
