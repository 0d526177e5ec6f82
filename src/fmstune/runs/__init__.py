"""What a run leaves on disk, and the reports made from it."""
