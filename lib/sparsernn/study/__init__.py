"""The study: which model on which data, trained how, and runs that are found, resumed or trained once."""
