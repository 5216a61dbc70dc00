"""The search for better choices: candidates are built, run, checked and judged, and the winner is recorded. Never sees `kernels`: they meet in the records."""
