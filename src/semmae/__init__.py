"""SemMAE: semantic-guided masking for masked autoencoders."""
