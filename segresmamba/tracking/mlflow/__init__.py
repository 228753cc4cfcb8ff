"""MLflow, brought to the state of the journal. The only place that imports mlflow."""
