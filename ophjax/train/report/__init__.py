"""The page that a run leaves: ``page.write_report``, and what stands on it."""
