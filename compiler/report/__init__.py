"""What a person sees: the console, the page, tables and graphs."""
