"""Pictures of what was kept: rebuilt from the patches, and with the patches drawn on the frame."""
