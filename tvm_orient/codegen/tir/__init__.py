"""Rewrites of TIR: what schedule primitives cannot say."""
