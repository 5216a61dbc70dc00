"""Which kernel serves a problem, and where it lies on disk: the choice, its key, the cache, building and exporting. Knows no torch."""
