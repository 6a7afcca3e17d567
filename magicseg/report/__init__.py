"""The report: one HTML file with a run's samples, dropped samples, training curves and scores."""
