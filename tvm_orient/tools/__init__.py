"""Tools that people run and look at: the demo, the doctor and the plots."""
