"""Reports of results: tables, pictures and plots as HTML, Markdown and JSON."""
