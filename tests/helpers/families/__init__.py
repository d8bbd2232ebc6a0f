"""What `family_models` and `family_reference` are made of: one part of every family a file."""
