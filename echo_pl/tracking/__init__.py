"""MLflow: logger, local database first, upload."""
