"""What a run leaves on disk: artefacts, checkpoints, provenance."""
