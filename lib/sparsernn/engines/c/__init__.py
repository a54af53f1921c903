"""The C engine: a layer without its zeros on one core, by the widest instructions that are here."""
