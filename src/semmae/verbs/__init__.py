"""One file per verb: its options, then top to bottom what it does."""
