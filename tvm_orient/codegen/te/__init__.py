"""The operators as TE stages: one file for each operator and layout, and the pieces that several share."""
