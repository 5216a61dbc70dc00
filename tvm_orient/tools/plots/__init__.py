"""Pictures: taps, oriented responses and measured times, in one style."""
