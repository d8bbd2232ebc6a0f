"""Measuring how well selections show a video: settings, clips, numbers, tables and figures."""
