"""The report: one HTML file that shows what a run made, dropped, learned and scored."""
