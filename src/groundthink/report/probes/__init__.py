"""Pages of the probes: a module each, whose `section` draws the records of the probe's name."""
