"""Run folders become a page, a text and a table; two runs are compared."""
