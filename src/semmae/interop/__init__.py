"""Other projects' checkpoints: one file per format, pure key maps."""
