"""The log of a run in a tracking service: wandb, mlflow or trackio. Sent from its folder, not by the run itself."""
