"""Parts of pages, as data for templates: charts, waterfalls, trees, text."""
