"""What a reader sees: tables, figures, the claims of the papers beside our figures, and what `make publish` writes."""
