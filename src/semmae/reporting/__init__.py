"""What a run came to: results, verdicts, pictures, pages."""
