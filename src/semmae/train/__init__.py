"""Training: one LightningModule per stage, and the Trainer they run on."""
