"""Metrics and their intervals, OOD scores and linear probes: functions of arrays."""
