"""Day-two commands: `penstock render`, `penstock status` and `penstock doctor`."""
