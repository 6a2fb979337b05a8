"""Depthwise and pointwise schedules for MobileNet's shapes, one folder for each target."""
