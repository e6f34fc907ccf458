"""What a model is: its hyper-parameters, its family's mathematics, what runs it."""
