"""What a training run keeps in its folder: checkpoints, what decides it, and where it goes on."""
