"""Fine-tuning a wrapped model: data, what is trained, the trainer, saving."""
