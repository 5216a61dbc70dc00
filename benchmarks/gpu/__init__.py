"""Prepare, run and collect what a GPU is wanted for: a kit for one that is lent by the minute, tuning, and sanitizing."""
