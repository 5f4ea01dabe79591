"""Images on disk → rows of tensors: sources, the manifest, crops, the part-map store, loaders."""
