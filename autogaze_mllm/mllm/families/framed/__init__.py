"""Families whose base takes pictures of one size and writes each into the prompt by itself."""
