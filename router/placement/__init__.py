"""Placement in seconds: costs, their fit, the objective, the log of decisions. Pure: no I/O, no clock of its own."""
