"""Tuned choices as data: a record, the files that hold records, how files are merged, and which record answers for a problem."""
