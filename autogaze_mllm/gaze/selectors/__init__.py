"""Selectors: anything that picks patches."""
