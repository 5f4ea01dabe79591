"""The door to every encoder: our own folders, and one file per foreign form."""
