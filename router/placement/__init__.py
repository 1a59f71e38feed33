"""Placement in seconds: costs, their fit, the objective, the log of decisions, drift. Pure: no I/O, no clock."""
