"""Tiny base models of every family, and what they are compared with.

`configs`, `folders`, `layouts`, `native_layouts`, `qwen_configs` and `templates` are what `models` and `reference` are
made of.
"""
