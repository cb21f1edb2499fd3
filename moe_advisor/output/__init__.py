"""Renderings of a result: HTML, terminal text, Markdown, JUnit and JSON."""
