"""Tables and self-contained HTML pages, for the reports of every room."""
