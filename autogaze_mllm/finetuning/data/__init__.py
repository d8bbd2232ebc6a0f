"""Samples: from files to the tokens that a training step takes."""
