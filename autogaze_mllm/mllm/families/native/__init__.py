"""Families that transformers does not have; their models are in `mllm/native`."""
