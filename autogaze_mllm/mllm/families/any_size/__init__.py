"""Families whose tower takes pictures of any size."""
