"""Self-contained offline HTML pages, made from records alone."""
