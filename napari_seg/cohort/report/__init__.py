"""The report of a run: a page and tables, written from the manifest."""
