"""Corruptions of images, C and C̄: functions of whole batches."""
