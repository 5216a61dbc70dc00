"""Hand-written schedules: templates, their registry, and the choice of one."""
