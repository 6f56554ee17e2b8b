"""In-Run Data Shapley: the worth of every training sample, measured while the model is trained once."""
