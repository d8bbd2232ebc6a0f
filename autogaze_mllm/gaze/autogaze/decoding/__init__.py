"""Choosing patches frame by frame, on the CPU and on accelerators."""
