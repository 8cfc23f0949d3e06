"""Run folder to one offline HTML file: no script, nothing loaded from anywhere."""
