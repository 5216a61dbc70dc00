"""Make tables, pictures and a comparison with the targets of what was measured."""
