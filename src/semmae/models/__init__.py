"""The networks: encoder, masked autoencoder, part learner. They see tensors, never paths, options or RNG."""
