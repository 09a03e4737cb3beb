"""The catalog: a row for each data set, with all that is known of it."""
