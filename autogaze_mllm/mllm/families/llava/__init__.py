"""LLaVA and its kin in transformers."""
