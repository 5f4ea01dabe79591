"""Measurements over any encoder that returns `Features`: plain torch and scikit-learn."""
