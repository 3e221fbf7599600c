"""Published data sets in the layout they are handed round in; the user gives the path."""
