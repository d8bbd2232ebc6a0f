"""Clips to train on, and their labels."""
