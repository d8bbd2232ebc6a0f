"""Reconstruction tasks: how well kept patches show a clip."""
