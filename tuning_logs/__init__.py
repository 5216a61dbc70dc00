"""Tuning logs that ship with tvm_orient: data only, read through tvm_orient.logs. See README.md."""
