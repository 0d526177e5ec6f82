"""Models are loaded, adapted, sharded, saved and merged."""
